"""Graphs in the forms that people have them: from each to the cells of an adjacency matrix, and back."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from ..base.errors import DataError
from .sparse import Bags, bags_of_sparse
from .structures import is_structure, listed

EXPECTED = "a networkx graph, a square adjacency matrix (N, N), or a list of edges in two columns (three with counts)"


class Cells(NamedTuple):
    """The cells of an adjacency matrix that are not 0."""

    first: np.ndarray
    second: np.ndarray
    value: np.ndarray  # NaN where it is not known
    size: int


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
