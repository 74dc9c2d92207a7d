"""Graphs as data: from networkx, adjacency matrices and lists of edges to one matrix, and the pairs a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from .graph_formats import (
    EXPECTED,
    Cells,
    edge_frame,
    is_hollow,
    is_list_of_edges,
    is_square_matrix,
    of_bags,
    of_edges,
    of_networkx,
    of_square_frame,
    of_table,
)
from .sparse import bags_of_sparse, is_sparse
from .structures import is_instance, is_structure, to_tensor
from .tables import read

KINDS = ("undirected", "directed")
DENSE = 1_000  # nodes: a graph up to this size is kept as a table, a larger one as its edges


class Graph(NamedTuple):
    """Pairs of nodes, as a model takes them: every pair once (first < second), or in both orders in a directed graph.

    A model may be run on some of the pairs only.
    """

    first: Tensor  # (P,) number of a node
    second: Tensor  # (P,)
    edges: Tensor  # (P,) 0 or 1, or a count; NaN where it is not known
    out_degree: Tensor  # (N,) edges of each node; of a directed graph those that leave it
    in_degree: Tensor  # (N,) the same, and those that arrive
    num_nodes: int


def every_pair(size: int, kind: str) -> tuple[Tensor, Tensor]:
    """First and second node of all pairs."""
    if kind == "undirected":
        first, second = torch.triu_indices(size, size, 1)
        return first, second
    nodes = torch.arange(size)
    first, second = nodes.repeat_interleave(size), nodes.repeat(size)
    return first[first != second], second[first != second]


def view(table: Tensor, kind: str) -> Graph:
    """All pairs of an adjacency matrix (N, N); its cells keep their identity."""
    first, second = every_pair(len(table), kind)
    away = ~torch.eye(len(table), dtype=torch.bool)
    seen = ~table.isnan() & away
    filled = torch.where(seen, table, 0.0).double()
    others = len(table) - 1.0

    def degree(dim: int) -> Tensor:
        return filled.sum(dim) / seen.sum(dim).clamp_min(1) * others

    return Graph(first, second, table[first, second], degree(1), degree(0), len(table))


# --- taking them in ---------------------------------------------------------------------------------------------------


def adapt_graph(data: Any, kind: str, schema: Any) -> tuple[Any, dict[str, Any], Any]:
    """The adjacency matrix of a graph, what its schema holds, and the names of its nodes.

    Parameters
    ----------
    data : object
        A networkx graph (an edge's `weight` is its count), a square matrix (an array, a tensor, a DataFrame whose
        columns name the nodes, a sparse matrix of scipy or torch), a list of edges (a DataFrame or an array of two
        columns, or a list of tuples, or three with counts; repeated edges add up, and pairs of count NaN are not
        known), or a path. An array or a
        table of 2 or 3 rows that is square is a matrix where its diagonal is 0.
    kind : {"undirected", "directed"}
    schema : Schema, optional
        That of training, whose nodes these are.

    Returns
    -------
    values : Tensor (N, N), or Bags of a large graph
        A pair is not known where its cell is NaN; of an undirected graph, where both its cells are.

    Raises
    ------
    DataError
        An edge of a node to itself; a matrix that is not square, or not symmetric in an undirected graph; a node
        without a name, or not known in training; no node, no edge, or no number.
    """
    if isinstance(data, str | Path):
        data = read(data)
    known = None if schema is None else schema.labels.get("node")
    labels: dict[str, Any] = {}
    names: Sequence[Any] | None = None
    if is_instance(data, "networkx", "Graph"):
        container, (cells, names) = "networkx", of_networkx(data, kind, known)
    elif is_list_of_edges(data):
        import pandas as pd

        frame = pd.DataFrame(list(map(list, data)), columns=["from", "to", "count"][: len(data[0])])
        container, (cells, names) = "edges", of_edges(frame, kind, known)
        labels["edge"] = tuple(frame.columns)
    elif is_sparse(data):
        container, cells = "sparse", of_bags(bags_of_sparse(data))
    elif is_instance(data, "pandas", "DataFrame"):
        if is_square_matrix(data):
            container, (cells, names) = "frame", of_square_frame(data, known)
        else:
            container, (cells, names) = "edges", of_edges(data, kind, known)
            labels["edge"] = tuple(map(str, data.columns))
    else:
        if is_structure(data) or not hasattr(data, "__len__"):
            raise DataError(f"data: met {type(data).__name__}, expected {EXPECTED}")
        table = to_tensor(data, "data").detach().cpu()
        if table.dim() != 2 or (table.shape[0] != table.shape[1] and table.shape[1] not in (2, 3)):
            raise DataError(f"data: met shape {tuple(table.shape)}, expected {EXPECTED}")
        if table.shape[0] == table.shape[1] and (len(table) > 3 or is_hollow(table.double().numpy())):
            container, cells = "tensor" if isinstance(data, Tensor) else "array", of_table(table.double().numpy())
        else:
            container, (cells, names) = "edge_array", of_edges(edge_frame(table.numpy()), kind, known)
    shown = [str(name) for name in names] if names is not None else None
    if len(set(shown or ())) < len(shown or ()):
        raise DataError("data: met nodes whose names read alike, expected names that differ as text; rename them")
    cells = _checked(cells, kind, shown, training=schema is None)
    if schema is not None and cells.size != schema.width:
        raise DataError(
            f"data: met a graph of {cells.size} nodes, expected the {schema.width} of training: fit it anew"
        )
    if names is not None:
        labels["node"] = tuple(names)
    columns = tuple(shown) if shown is not None else None if schema is None else schema.columns
    found = {"columns": columns, "labels": {**labels}, "container": container, "width": cells.size, "graph": kind}
    if schema is not None:
        found["labels"] = {**schema.labels, **labels}
    return _packed(cells), found, None if names is None else np.asarray(shown)


# --- checks -----------------------------------------------------------------------------------------------------------


def _checked(cells: Cells, kind: str, names: Sequence[str] | None, training: bool) -> Cells:
    """Sound cells: of an undirected graph both of a pair, each known where the other is."""

    def called(node: Any) -> str:
        return repr(names[int(node)]) if names is not None else str(int(node))

    first, second, value, size = cells
    if size < 2:
        raise DataError(f"data: met a graph of {size} node, expected at least two nodes and an edge")
    gaps = np.isnan(value)
    wrong = np.flatnonzero(np.isinf(value))
    if len(wrong):
        raise DataError(
            f"data: met {value[wrong[0]]} between nodes {called(first[wrong[0]])} and {called(second[wrong[0]])}, "
            f"expected finite numbers; make it NaN (not known)"
        )
    loops = np.flatnonzero((first == second) & ~gaps & (value != 0))
    if len(loops):
        node = called(first[loops[0]])
        raise DataError(
            f"data: node {node} has an edge to itself ({value[loops[0]]:g}), expected edges between two nodes: take "
            f"out the {len(loops)} self-loop{'s' * (len(loops) > 1)} (0 on the diagonal)"
        )
    off = first != second
    first, second, value, gaps = first[off], second[off], value[off], gaps[off]
    from scipy.sparse import csr_array

    table = csr_array((np.where(gaps, 0.0, value), (first, second)), shape=(size, size))
    missing = csr_array((gaps.astype(np.float64), (first, second)), shape=(size, size))
    missing.eliminate_zeros()
    if kind == "undirected" and missing.nnz:
        table = table + missing.multiply(table.T).tocsr()  # one cell of a pair speaks for the other
        missing = missing.multiply(missing.T).tocsr()
    if kind == "undirected":
        odd = (table - table.T).tocoo()
        odd.eliminate_zeros()
        if odd.nnz:
            i, j = int(odd.coords[0][0]), int(odd.coords[1][0])
            raise DataError(
                f"data: {called(i)} to {called(j)} is {table[i, j]:g}, but {called(j)} to {called(i)} is "
                f"{table[j, i]:g}, expected a symmetric matrix of an undirected graph: give the model directed=True, "
                f"or make it symmetric"
            )
    table.eliminate_zeros()
    if training and not table.nnz:
        raise DataError(f"data: met a graph of {size} nodes without an edge, expected at least one")
    both = (table + missing).tocoo()
    out = both.data.copy()
    if missing.nnz:
        out[missing[both.coords[0], both.coords[1]] > 0] = np.nan
    return Cells(both.coords[0], both.coords[1], out, size)


def _packed(cells: Cells) -> Any:
    """A table of few nodes; the edges of many."""
    if cells.size <= DENSE:
        table = torch.zeros(cells.size, cells.size, dtype=torch.float64)
        table[torch.from_numpy(cells.first).long(), torch.from_numpy(cells.second).long()] = torch.from_numpy(
            cells.value
        )
        return table
    from scipy.sparse import csr_array

    return bags_of_sparse(csr_array((cells.value, (cells.first, cells.second)), shape=(cells.size, cells.size)))
