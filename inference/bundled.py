"""Small data sets by name: scikit-learn's, and short published tables typed in with the paper cited.

pandas and scikit-learn are imported where they are used: they take a second, and most sessions need neither.
"""

from __future__ import annotations

from typing import Any

BUNDLED: dict[str, str] = {
    "iris": "150 flowers of three species, 4 lengths in cm (Fisher 1936)",
    "wine": "178 wines of three growers, 13 chemical measurements (Forina et al. 1988)",
    "digits": "1797 handwritten digits, 64 pixels from 0 to 16 (Alpaydin & Kaynak 1998)",
    "breast_cancer": "569 tumours, 30 measurements of cell nuclei (Street, Wolberg & Mangasarian 1993)",
    "diabetes": "442 patients, 10 measurements, centred and scaled (Efron et al. 2004)",
    "linnerud": "20 men, 3 exercises (Tenenhaus 1998)",
    "carcinoma": "118 slides rated no or yes by 7 pathologists (Agresti 2002, table 13.1)",
    "stouffer_toby": "216 answers to 4 questions on role conflict (Stouffer & Toby 1951; Goodman 1974)",
    "cheating": "319 students, 4 questions on cheating (Dayton 1998, table 3.4)",
    "hasselblad_deaths": "1096 days, deaths of women over 80 noted in The Times (Hasselblad 1969)",
    "galaxies": "82 velocities in 1000 km/s, Corona Borealis region (Postman et al. 1986; Roeder 1990)",
}
"""Name of each bundled data set -> what it holds, in a line."""

# A pattern has a digit per item, the position of its answer among the labels; the number is how often it was observed.

# Agresti (2002), Categorical Data Analysis, 2nd ed., table 13.1. Items: pathologists A to G.
_CARCINOMA = """
0000000 34  0000100  2  0100000  6  0100001  1  0100100  4  0100101  5  1000000  2  1010101  1  1100000  2  1100001  1
1100100  2  1100101  7  1100111  1  1101001  1  1101101  2  1101111  3  1110101 13  1110111  5  1111101 10  1111111 16
"""

# Stouffer & Toby (1951), American Journal of Sociology 56; Goodman (1974), Biometrika 61, 215-231.
_STOUFFER_TOBY = """
0000 20  0001  2  0010  9  0011  2  0100  6  0101  1  0110  4  0111  1
1000 38  1001  7  1010 24  1011  6  1100 25  1101  6  1110 23  1111 42
"""

# Dayton (1998), Latent Class Scaling Analysis, table 3.4. Lied to avoid an exam; lied to hand a paper in late;
# bought a paper or obtained an exam beforehand; copied during an exam.
_CHEATING = """
0000 207  0001 46  0010  7  0011  5  0100 13  0101  4  0110  1  0111  2
1000  10  1001  3  1010  1  1011  2  1100 11  1101  4  1110  1  1111  2
"""

# name -> columns, labels of the answers in order of their codes, patterns with their counts
_PATTERNS = {
    "carcinoma": (tuple("ABCDEFG"), ("no", "yes"), _CARCINOMA),
    "stouffer_toby": (tuple("ABCD"), ("particularistic", "universalistic"), _STOUFFER_TOBY),
    "cheating": (("LIEEXAM", "LIEPAPER", "FRAUD", "COPYEXAM"), ("no", "yes"), _CHEATING),
}

# Hasselblad (1969), JASA 64, 1459-1471: number of days with 0, 1, ..., 9 deaths.
_HASSELBLAD_DEATHS = (162, 267, 271, 185, 111, 61, 27, 8, 3, 1)

# Roeder (1990), JASA 85, 617-624, in km/s. The 78th is 26690 as in R's MASS, from which the published fits come;
# MASS notes that it should be 26960.
_GALAXIES = """
 9172  9350  9483  9558  9775 10227 10406 16084 16170 18419 18552 18600 18927 19052 19070 19330 19343 19349 19440 19473
19529 19541 19547 19663 19846 19856 19863 19914 19918 19973 19989 20166 20175 20179 20196 20215 20221 20415 20629 20795
20821 20846 20875 20986 21137 21492 21701 21814 21921 21960 22185 22209 22242 22249 22314 22374 22495 22746 22747 22888
22914 23206 23241 23263 23484 23538 23542 23666 23706 23711 24129 24285 24289 24366 24717 24990 25633 26690 26995 32065
32789 34279
"""


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
    if name in _PATTERNS:
        return _expand(*_PATTERNS[name])
    if name == "hasselblad_deaths":
        days = [deaths for deaths, count in enumerate(_HASSELBLAD_DEATHS) for _ in range(count)]
        return _frame({"deaths_per_day": days})
    if name == "galaxies":
        return _frame({"velocity": [int(number) / 1000 for number in _GALAXIES.split()]})
    from sklearn import datasets

    return getattr(datasets, f"load_{name}")(as_frame=True)["data"]


def _expand(columns: tuple[str, ...], labels: tuple[str, ...], table: str) -> Any:
    """One row for each time that a pattern was observed, in the order of the table."""
    import pandas as pd

    words = table.split()
    rows = [pattern for pattern, count in zip(words[::2], words[1::2], strict=True) for _ in range(int(count))]
    items = zip(*rows, strict=True)
    return _frame(
        {c: pd.Categorical.from_codes([int(d) for d in item], labels) for c, item in zip(columns, items, strict=True)}
    )


def _frame(columns: dict[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame(columns)
