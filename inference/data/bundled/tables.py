"""Small data sets by name: scikit-learn's, and short published tables typed in as CSV files, each with its source.

pandas and scikit-learn are imported where they are used: they take a second, and most sessions need neither.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from .docstrings import docstrings, documentation

BUNDLED: dict[str, str] = {
    "iris": "150 flowers of three species, 4 lengths in cm (Fisher 1936)",
    "wine": "178 wines of three growers, 13 chemical measurements (Forina et al. 1988)",
    "digits": "1797 handwritten digits, 64 pixels from 0 to 16 (Alpaydin & Kaynak 1998)",
    "binary_digits": "1797 handwritten digits, 64 pixels with ink (1) or without (0) (from digits: above half of 16)",
    "labelled_digits": "1797 handwritten digits: which digit, and ink (1) or none (0) in 64 places (from digits)",
    "digit_lines": "1797 handwritten digits, the ink in each of their 8 lines (from digits)",
    "breast_cancer": "569 tumours, 30 measurements of cell nuclei (Street, Wolberg & Mangasarian 1993)",
    "diabetes": "442 patients, 10 measurements, centred and scaled (Efron et al. 2004)",
    "linnerud": "20 men, 3 exercises (Tenenhaus 1998)",
    "carcinoma": "118 slides rated no or yes by 7 pathologists (Agresti 2002, table 13.1)",
    "stouffer_toby": "216 answers to 4 questions on role conflict (Stouffer & Toby 1951; Goodman 1974)",
    "cheating": "319 students, 4 questions on cheating (Dayton 1998, table 3.4)",
    "lsat6": "1000 answers to 5 questions of the Law School Admission Test, section 6 (Bock & Lieberman 1970)",
    "baseball": "273 games of seven teams of the American League East in 1987 (Agresti 2002, section 10.6)",
    "hasselblad_deaths": "1096 days, deaths of women over 80 noted in The Times (Hasselblad 1969)",
    "red_mites": "150 apple leaves, European red mites on each (Bliss & Fisher 1953, table 1)",
    "fetal_lamb": "240 intervals of 5 seconds, movements of a fetal lamb (Leroux & Puterman 1992)",
    "anesthesia": "315 grades, 1 to 4, of 45 patients by 5 anaesthetists (Dawid & Skene 1979, table 1)",
    "eight_schools": "8 schools, effect of coaching on a test and its standard error (Rubin 1981)",
    "dyestuff": "30 samples from 6 batches of dyestuff, yield in grams (Davies & Goldsmith 1972)",
    "cars": "32 cars of 1973-74: consumption, weight, engine, gears (Henderson & Velleman 1981)",
    "girls": "305 girls, 8 measurements: rows made to have the correlations of Harman (1976, table 2.3)",
    "docstrings": "functions of scipy by the words of their docstrings (of the version installed)",
    "documentation": "functions and classes of seven packages by the words of their docstrings (as installed)",
    "karate_club": "34 members of a karate club, who is friends with whom: a graph of 78 edges (Zachary 1977)",
    "galaxies": "82 velocities in 1000 km/s, Corona Borealis region (Postman et al. 1986; Roeder 1990)",
}
"""Name of each bundled data set -> what it holds, in a line."""

HERE = Path(__file__).parent
LEVELS = re.compile(r"# levels(?: of (?P<column>[^:]+))?: (?P<levels>.*)")


def load_bundled(name: str) -> Any:
    """A bundled data set as a table.

    Parameters
    ----------
    name : str
        One of `BUNDLED`.

    Returns
    -------
    pandas.DataFrame
        (N, D). The features alone: where the source has a target, it is left out. Answers to questions are categories.

    Raises
    ------
    ValueError
        For a name that is not bundled.
    """
    if name not in BUNDLED:
        raise ValueError(f"load_bundled: no data set {name!r}; there are {', '.join(BUNDLED)}")
    if (HERE / f"{name}.csv").exists():
        table = _typed(name)
        if name == "karate_club":
            return _adjacency(table)
        return _rows_of_correlations(table) if name == "girls" else table
    if name in ("docstrings", "documentation"):
        return docstrings() if name == "docstrings" else documentation()
    from sklearn import datasets

    if "digit" not in name or name == "digits":
        return getattr(datasets, f"load_{name}")(as_frame=True)["data"]
    found = datasets.load_digits(as_frame=True)
    if name == "digit_lines":
        lines = found["images"].sum(2).T  # (8, N), of pixels from 0 to 16
        return type(found["data"])({f"line {line}": ink.astype(int) for line, ink in enumerate(lines)})
    table = (found["data"] > 8).astype(int)
    if name == "labelled_digits":
        table.insert(0, "digit", found["target"].astype(int))
    return table


def _typed(name: str) -> Any:
    """A CSV file of this folder. Lines ``# levels of COLUMN: a, b`` (``# levels: a, b`` of all columns) name its
    categories in order; a row of a column ``times`` stands for so many.
    """
    import pandas as pd

    path = HERE / f"{name}.csv"
    levels = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if found := LEVELS.fullmatch(line):
            levels[found["column"]] = found["levels"].split(", ")
    text = dict.fromkeys(levels, str) if None not in levels else str
    frame = pd.read_csv(path, comment="#", dtype=text)
    if "times" in frame:
        times = frame.pop("times").astype(int)
        frame = frame.loc[frame.index.repeat(times)].reset_index(drop=True)
    for column in frame if None in levels else levels:
        frame[column] = pd.Categorical(frame[column], levels.get(column) or levels[None])
    return frame


def _adjacency(edges: Any) -> Any:
    """The adjacency matrix of a list of edges, rows and columns named by the members' numbers."""
    import numpy as np
    import pandas as pd

    pairs = edges.to_numpy()
    table = np.zeros((pairs.max(), pairs.max()), dtype=int)
    table[tuple(pairs.T - 1)] = table[tuple(pairs.T[::-1] - 1)] = 1
    members = [str(number) for number in range(1, len(table) + 1)]
    return pd.DataFrame(table, index=members, columns=members)


def _rows_of_correlations(lower: Any, num_rows: int = 305) -> Any:
    """Rows (N, D) of mean 0 and variance 1 (divided by N) that have exactly these correlations.

    What is normal, factor analysis among it, sees no more of a table than the means and covariances of its columns; so
    such rows give exactly the published fits, where the rows themselves are lost.
    """
    import numpy as np
    import pandas as pd

    half = np.nan_to_num(lower.to_numpy(dtype=float))
    correlation = half + np.tril(half, -1).T
    noise = np.random.default_rng(0).standard_normal((num_rows, len(half)))
    noise -= noise.mean(0)
    orthogonal, _ = np.linalg.qr(noise)  # its columns sum to 0 too
    return pd.DataFrame(math.sqrt(num_rows) * orthogonal @ np.linalg.cholesky(correlation).T, columns=lower.columns)
