"""Graphs as data: from networkx, adjacency matrices and lists of edges to one matrix, and the pairs a model sees."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..base.errors import DataError
from .sparse import Bags, bags_of_sparse, is_sparse
from .structures import is_instance, is_structure, listed, to_tensor
from .tables import read

KINDS = ("undirected", "directed")
DENSE = 1_000  # nodes: a graph up to this size is kept as a table, a larger one as its edges
EXPECTED = "a networkx graph, a square adjacency matrix (N, N), or a list of edges in two columns (three with counts)"


class Cells(NamedTuple):
    """The cells of an adjacency matrix that are not 0."""

    first: np.ndarray
    second: np.ndarray
    value: np.ndarray  # NaN where it is not known
    size: int


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


def is_hollow(table: np.ndarray) -> bool:
    """Whether no node has an edge to itself: what tells a matrix of 2 or 3 nodes from a list of 2 or 3 edges."""
    return not bool(np.nan_to_num(np.diag(table)).any())


def is_square_matrix(frame: Any) -> bool:
    if frame.shape[0] != frame.shape[1]:
        return False
    if len(frame) > 3 or list(frame.index) == list(frame.columns):
        return True
    numbers = all(getattr(kind, "kind", "O") in "biuf" for kind in frame.dtypes)
    return numbers and is_hollow(frame.to_numpy(dtype=np.float64, na_value=np.nan))


def is_list_of_edges(data: Any) -> bool:
    """Edges such as ("a", "b"), or lists with a name in them; lists of numbers are the rows of an array."""
    if not isinstance(data, list | tuple) or is_structure(data) or not len(data):
        return False
    if {len(row) if isinstance(row, list | tuple) else 0 for row in data} not in ({2}, {3}):
        return False
    return all(isinstance(row, tuple) for row in data) or any(
        one is None or isinstance(one, str) for r in data for one in r
    )


def of_networkx(graph: Any, kind: str, known: Any) -> tuple[Cells, list[Any]]:
    if graph.is_directed() != (kind == "directed"):
        met, way = ("a directed", "un") if graph.is_directed() else ("an undirected", "")
        other = "False" if kind == "directed" else "True"
        raise DataError(
            f"data: met {met} networkx graph, expected {kind} edges: give the model directed={other}, or the graph as "
            f"graph.to_{way}directed()"
        )
    names = [_name(name) for name in graph.nodes]
    if not names:
        raise DataError("data: met a graph without nodes, expected at least two nodes and an edge")
    rows = [(_name(a), _name(b), weight) for a, b, weight in graph.edges(data="weight", default=1)]
    return _numbered(rows, names, kind, known)


def of_square_frame(frame: Any, known: Any) -> tuple[Cells, list[Any]]:
    import pandas as pd

    names = [_name(name) for name in frame.columns]
    if not isinstance(frame.index, pd.RangeIndex) and [_name(name) for name in frame.index] != names:
        raise DataError("data: met an adjacency matrix whose rows and columns have different names, expected the same")
    wrong = [str(name) for name, kind in frame.dtypes.items() if getattr(kind, "kind", "O") not in "biuf"]
    if wrong:
        raise DataError(f"data: column {wrong[0]!r} of the adjacency matrix holds no numbers, expected edges or counts")
    if known is not None:
        _require_known(names, known)
        absent = [name for name in known if name not in names]
        if absent:
            raise DataError(f"data: met no node {listed(absent)}, expected every node of training")
        place = [names.index(name) for name in known]
        frame, names = frame.iloc[place, place], list(known)
    return of_table(frame.to_numpy(dtype=np.float64, na_value=np.nan)), names


def of_table(table: np.ndarray) -> Cells:
    first, second = np.nonzero(table)  # NaN is not 0
    return Cells(first, second, table[first, second], len(table))


def of_bags(bags: Bags) -> Cells:
    if len(bags) != bags.width:
        raise DataError(f"data: met a sparse matrix of shape {(len(bags), bags.width)}, expected {EXPECTED}")
    first, second, value = bags.rows.numpy(), bags.index.numpy(), bags.count.numpy()
    if bags.missing is not None:
        gaps = bags.missing.numpy()
        first, second = np.concatenate([first, gaps[:, 0]]), np.concatenate([second, gaps[:, 1]])
        value = np.concatenate([value, np.full(len(gaps), np.nan)])
    return Cells(first, second, value, len(bags))


def edge_frame(table: np.ndarray) -> Any:
    import pandas as pd

    return pd.DataFrame(table, columns=["from", "to", "count"][: table.shape[1]])


def of_edges(frame: Any, kind: str, known: Any) -> tuple[Cells, list[Any]]:
    if frame.shape[1] not in (2, 3):
        raise DataError(f"data: met a table of shape {frame.shape}, expected {EXPECTED}")
    if not len(frame):
        raise DataError("data: met a list of no edges, expected at least one")
    sides = []
    for column in frame.columns[:2]:
        gone = frame[column].isna().to_numpy()
        if gone.any():
            row = int(gone.argmax())
            raise DataError(
                f"data: edge {row} (the first is 0) has no node in column {str(column)!r}, expected a name: leave the "
                f"edge out, or name the node"
            )
        sides.append([_name(name) for name in frame[column]])
    counts: Any = np.ones(len(frame))
    if frame.shape[1] == 3:
        if frame.dtypes.iloc[2].kind not in "biuf":
            raise DataError(f"data: column {str(frame.columns[2])!r} holds no numbers, expected counts of edges")
        counts = frame.iloc[:, 2].to_numpy(dtype=np.float64, na_value=np.nan)
    met = set(sides[0]) | set(sides[1])
    whole = all(isinstance(name, int) for name in met)
    names = sorted(met) if whole else sorted(met, key=str)
    return _numbered(list(zip(*sides, counts, strict=True)), names, kind, known)


def _numbered(rows: list[tuple[Any, Any, Any]], names: list[Any], kind: str, known: Any) -> tuple[Cells, list[Any]]:
    """Edges by name as cells; the nodes of training, where they are known."""
    if known is not None:
        _require_known(names, known)
        names = list(known)
    place = {name: number for number, name in enumerate(names)}
    first = np.array([place[a] for a, _, _ in rows], dtype=np.int64)
    second = np.array([place[b] for _, b, _ in rows], dtype=np.int64)
    try:
        value = np.array([np.nan if weight is None else float(weight) for *_, weight in rows])
    except (TypeError, ValueError):
        raise DataError("data: met an edge whose weight is no number, expected counts of edges") from None
    if kind == "undirected":
        loops = first == second
        first, second = np.concatenate([first, second[~loops]]), np.concatenate([second, first[~loops]])
        value = np.concatenate([value, value[~loops]])
    from scipy.sparse import coo_array

    summed = coo_array((value, (first, second)), shape=(len(names), len(names))).tocsr().tocoo()
    return Cells(summed.coords[0], summed.coords[1], summed.data, len(names)), names


def _require_known(names: Sequence[Any], known: Sequence[Any]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise DataError(
            f"data: met node {listed(unknown)}, which was not seen in training: leave it out, or fit the graph anew"
        )


def _name(name: Any) -> Any:
    if isinstance(name, bool | str):
        return str(name)
    if isinstance(name, int | np.integer) or (isinstance(name, float | np.floating) and float(name).is_integer()):
        return int(name)
    return str(name)


# --- giving them back -------------------------------------------------------------------------------------------------


def decode_graph(values: Any, schema: Any) -> Any:
    """An adjacency matrix in the form the graph came in; nodes other than those of training are 0, 1, ..."""
    sparse = isinstance(values, Bags)
    size = len(values)
    if schema.container in ("tensor", "array", "frame"):
        table = values.dense() if sparse else values
        if schema.container == "tensor":
            return table
        array = table.detach().cpu().numpy()
        whole = bool((array == np.floor(array)).all())
        array = array.astype(np.int64) if whole else array
        if schema.container == "array":
            return array
        import pandas as pd

        names = names_of(schema, size)
        return pd.DataFrame(array, index=names, columns=names)
    if schema.container == "sparse":
        return (values if sparse else bags_of_table(values)).scipy()
    cells = of_bags(values) if sparse else of_table(values.detach().cpu().double().numpy())
    names = names_of(schema, size)
    return _as_networkx(cells, schema, names) if schema.container == "networkx" else _as_edges(cells, schema, names)


def bags_of_table(table: Tensor) -> Bags:
    """A matrix as its cells that are not 0."""
    from scipy.sparse import csr_array

    return bags_of_sparse(csr_array(table.detach().cpu().double().numpy()))


def names_of(schema: Any, size: int) -> list[Any]:
    """What the nodes are called; 0, 1, ... of other nodes than those of training."""
    known = schema.labels.get("node", ())
    return list(known) if len(known) == size else list(range(size))


def _once(cells: Cells, schema: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    keep = cells.first < cells.second if schema.graph == "undirected" else cells.first != cells.second
    return cells.first[keep], cells.second[keep], cells.value[keep]


def _as_networkx(cells: Cells, schema: Any, names: list[Any]) -> Any:
    nx = importlib.import_module("networkx")  # met only where torch, which brings it, or the user has it
    graph = nx.Graph() if schema.graph == "undirected" else nx.DiGraph()
    graph.add_nodes_from(names)
    for i, j, value in zip(*_once(cells, schema), strict=True):
        weight = {} if value == 1 else {"weight": int(value) if value == np.floor(value) else float(value)}
        graph.add_edge(names[i], names[j], **weight)
    return graph


def _as_edges(cells: Cells, schema: Any, names: list[Any]) -> Any:
    import pandas as pd

    first, second, value = _once(cells, schema)
    columns = schema.labels.get("edge", ("from", "to"))
    frame = pd.DataFrame({columns[0]: [names[i] for i in first], columns[1]: [names[j] for j in second]})
    if len(columns) > 2 or not (value == 1).all():
        whole = bool((value == np.floor(value)).all())
        frame[columns[2] if len(columns) > 2 else "count"] = value.astype(np.int64) if whole else value
    return frame if schema.container == "edges" else frame.to_numpy()
