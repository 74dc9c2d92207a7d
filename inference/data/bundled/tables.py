"""Small data sets by name: scikit-learn's, and short published tables typed in with the paper cited.

pandas and scikit-learn are imported where they are used: they take a second, and most sessions need neither.
"""

from __future__ import annotations

from typing import Any

from .correlations import girls
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

# Bock & Lieberman (1970), Psychometrika 35, 179-197: the 30 patterns met among 32.
_LSAT6 = """
00000   3  00001   6  00010   2  00011  11  00100   1  00101   1  00110   3  00111   4
01000   1  01001   8  01011  16  01101   3  01110   2  01111  15  10000  10  10001  29
10010  14  10011  81  10100   3  10101  28  10110  15  10111  80  11000  16  11001  56
11010  21  11011 173  11100  11  11101  61  11110  28  11111 298
"""

# Agresti (2002), Categorical Data Analysis, section 10.6: games won and lost at home against each of the others.
_TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
_BASEBALL = """
  -  4-3  4-2  4-3  6-1  4-2  6-0
3-3    -  4-2  4-3  6-0  6-1  4-3
2-5  4-3    -  2-4  4-3  4-2  6-0
3-3  5-1  2-5    -  4-3  4-2  6-1
5-1  2-5  3-3  4-2    -  5-2  6-0
2-5  3-3  3-4  4-3  4-2    -  2-4
2-5  1-5  1-6  2-4  1-6  3-4    -
"""

# Dawid & Skene (1979), Applied Statistics 28, 20-28, table 1: a number for each patient, a digit for each grade, of
# which observer 1 gave three.
_OBSERVERS = (1, 1, 1, 2, 3, 4, 5)
_ANESTHESIA = """
1111111 3334334 1122122 2223121 2223222 2223322 1222111 3333433 2222223
2322223 4444444 2223343 1111111 2223212 1211111 1112111 1111111 1111111
2222221 2221322 2222222 2222221 2223222 2212222 1111111 1111111 2322222
1111111 1111111 1121121 1111111 3333233 1111111 2222222 2223232 4334343
2212232 2323233 3333432 1111111 1111111 1212111 2322222 1211111 2222222
"""

# name -> columns, labels of the answers in order of their codes, patterns with their counts
_PATTERNS = {
    "carcinoma": (tuple("ABCDEFG"), ("no", "yes"), _CARCINOMA),
    "stouffer_toby": (tuple("ABCD"), ("particularistic", "universalistic"), _STOUFFER_TOBY),
    "lsat6": (tuple(f"item {number}" for number in range(1, 6)), ("wrong", "right"), _LSAT6),
    "cheating": (("LIEEXAM", "LIEPAPER", "FRAUD", "COPYEXAM"), ("no", "yes"), _CHEATING),
}

# Hasselblad (1969), JASA 64, 1459-1471: number of days with 0, 1, ..., 9 deaths.
_HASSELBLAD_DEATHS = (162, 267, 271, 185, 111, 61, 27, 8, 3, 1)

# Bliss & Fisher (1953), Biometrics 9, 176-200: number of leaves with 0, 1, ..., 7 mites.
_RED_MITES = (70, 38, 17, 10, 9, 3, 2, 1)

# Leroux & Puterman (1992), Biometrics 48, 545-558: number of intervals with 0, 1, ..., 7 movements.
_FETAL_LAMB = (182, 41, 12, 2, 2, 0, 0, 1)

# name -> column, how often each number was met
_FREQUENCIES = {
    "hasselblad_deaths": ("deaths_per_day", _HASSELBLAD_DEATHS),
    "red_mites": ("mites", _RED_MITES),
    "fetal_lamb": ("movements", _FETAL_LAMB),
}

# Rubin (1981), Journal of Educational Statistics 6, 377-401, table 1: estimated effect, standard error.
_EIGHT_SCHOOLS = """
A 28 15  B 8 10  C -3 16  D 7 11  E -1 9  F 1 11  G 18 10  H 12 18
"""

# Davies & Goldsmith (1972), Statistical Methods in Research and Production, table 6.1: a line for each batch.
_DYESTUFF = """
1545 1440 1440 1520 1580
1540 1555 1490 1560 1495
1595 1550 1605 1510 1560
1445 1440 1595 1465 1545
1595 1630 1515 1635 1625
1520 1455 1450 1480 1445
"""

# Henderson & Velleman (1981), Biometrics 37, 391-411, from Motor Trend 1974: miles per gallon, displacement (cubic
# inches), weight (1000 lb), quarter mile (s), cylinders, engine (0 is V), transmission (0 is automatic), gears,
# carburettors.
_CARS = """
21.0 160.0 2.620 16.46 6 0 1 4 4  21.0 160.0 2.875 17.02 6 0 1 4 4  22.8 108.0 2.320 18.61 4 1 1 4 1
21.4 258.0 3.215 19.44 6 1 0 3 1  18.7 360.0 3.440 17.02 8 0 0 3 2  18.1 225.0 3.460 20.22 6 1 0 3 1
14.3 360.0 3.570 15.84 8 0 0 3 4  24.4 146.7 3.190 20.00 4 1 0 4 2  22.8 140.8 3.150 22.90 4 1 0 4 2
19.2 167.6 3.440 18.30 6 1 0 4 4  17.8 167.6 3.440 18.90 6 1 0 4 4  16.4 275.8 4.070 17.40 8 0 0 3 3
17.3 275.8 3.730 17.60 8 0 0 3 3  15.2 275.8 3.780 18.00 8 0 0 3 3  10.4 472.0 5.250 17.98 8 0 0 3 4
10.4 460.0 5.424 17.82 8 0 0 3 4  14.7 440.0 5.345 17.42 8 0 0 3 4  32.4  78.7 2.200 19.47 4 1 1 4 1
30.4  75.7 1.615 18.52 4 1 1 4 2  33.9  71.1 1.835 19.90 4 1 1 4 1  21.5 120.1 2.465 20.01 4 1 0 3 1
15.5 318.0 3.520 16.87 8 0 0 3 2  15.2 304.0 3.435 17.30 8 0 0 3 2  13.3 350.0 3.840 15.41 8 0 0 3 4
19.2 400.0 3.845 17.05 8 0 0 3 2  27.3  79.0 1.935 18.90 4 1 1 4 1  26.0 120.3 2.140 16.70 4 0 1 5 2
30.4  95.1 1.513 16.90 4 1 1 5 2  15.8 351.0 3.170 14.50 8 0 1 5 4  19.7 145.0 2.770 15.50 6 0 1 5 6
15.0 301.0 3.570 14.60 8 0 1 5 8  21.4 121.0 2.780 18.60 4 1 1 4 2
"""

# Roeder (1990), JASA 85, 617-624, in km/s. The 78th is 26690 as in R's MASS, from which the published fits come;
# MASS notes that it should be 26960.
_GALAXIES = """
 9172  9350  9483  9558  9775 10227 10406 16084 16170 18419 18552 18600 18927 19052 19070 19330 19343 19349 19440 19473
19529 19541 19547 19663 19846 19856 19863 19914 19918 19973 19989 20166 20175 20179 20196 20215 20221 20415 20629 20795
20821 20846 20875 20986 21137 21492 21701 21814 21921 21960 22185 22209 22242 22249 22314 22374 22495 22746 22747 22888
22914 23206 23241 23263 23484 23538 23542 23666 23706 23711 24129 24285 24289 24366 24717 24990 25633 26690 26995 32065
32789 34279
"""

# Zachary (1977), Journal of Anthropological Research 33, 452-473, figure 2, with the 78 edges that are in use (of the
# two cells of 23 and 34 one is 0 in print): a line for each member 1 to 34, the later members it is tied to.
_KARATE_CLUB = """
2 3 4 5 6 7 8 9 11 12 13 14 18 20 22 32
3 4 8 14 18 20 22 31
4 8 9 10 14 28 29 33
8 13 14
7 11
7 11 17
17
-
31 33 34
34
-
-
-
34
33 34
33 34
-
-
33 34
34
33 34
-
33 34
26 28 30 33 34
26 28 32
32
30 34
34
32 34
33 34
33 34
33 34
34
-
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
    if name == "baseball":
        return _games()
    if name == "cars":
        return _cars()
    if name == "girls":
        return girls()
    if name == "eight_schools":
        school, effect, error = (_EIGHT_SCHOOLS.split()[i::3] for i in range(3))
        return _frame({"school": school, "effect": list(map(float, effect)), "standard_error": list(map(float, error))})
    if name == "dyestuff":
        batches = zip("ABCDEF", _DYESTUFF.strip().splitlines(), strict=True)
        batch, grams = zip(*[(name, float(word)) for name, line in batches for word in line.split()], strict=True)
        return _frame({"batch": batch, "yield": grams})
    if name == "anesthesia":
        return _grades()
    if name in _FREQUENCIES:
        column, frequencies = _FREQUENCIES[name]
        return _frame({column: [number for number, count in enumerate(frequencies) for _ in range(count)]})
    if name == "galaxies":
        return _frame({"velocity": [int(number) / 1000 for number in _GALAXIES.split()]})
    if name == "docstrings":
        return docstrings()
    if name == "documentation":
        return documentation()
    if name == "karate_club":
        return _karate_club()
    from sklearn import datasets

    if name == "binary_digits":
        return (datasets.load_digits(as_frame=True)["data"] > 8).astype(int)
    if name == "labelled_digits":
        found = datasets.load_digits(as_frame=True)
        table = (found["data"] > 8).astype(int)
        table.insert(0, "digit", found["target"].astype(int))
        return table
    if name == "digit_lines":
        pixels = datasets.load_digits().images  # (N, 8, 8), each 0 to 16
        return _frame({f"line {line}": ink.astype(int) for line, ink in enumerate(pixels.sum(2).T)})
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


def _grades() -> Any:
    """One row for each grade: patient, observer, and the grade."""
    import pandas as pd

    observers = [f"observer {number}" for number in _OBSERVERS]
    grades = [(patient, digit) for patient, row in enumerate(_ANESTHESIA.split(), 1) for digit in row]
    patients, digits = zip(*grades, strict=True)
    rater = pd.Categorical(observers * (len(grades) // len(observers)))
    return _frame({"item": patients, "rater": rater, "label": pd.Categorical(digits)})


def _games() -> Any:
    """One row for each game, home team first."""
    import pandas as pd

    rows = []
    for home, line in zip(_TEAMS, _BASEBALL.strip().splitlines(), strict=True):
        for away, score in zip(_TEAMS, line.split(), strict=True):
            won, lost = map(int, score.split("-")) if home != away else (0, 0)
            rows += [(home, away, "win")] * won + [(home, away, "loss")] * lost
    first, second, result = zip(*rows, strict=True)
    columns = {"first": (first, _TEAMS), "second": (second, _TEAMS), "result": (result, ("loss", "win"))}
    return _frame({name: pd.Categorical(values, categories) for name, (values, categories) in columns.items()})


def _karate_club() -> Any:
    """The adjacency matrix, rows and columns named by the members' numbers."""
    import numpy as np
    import pandas as pd

    lines = _KARATE_CLUB.strip().splitlines()
    table = np.zeros((len(lines), len(lines)), dtype=int)
    for i, line in enumerate(lines):
        for j in map(int, line.replace("-", "").split()):
            table[i, j - 1] = table[j - 1, i] = 1
    members = [str(number) for number in range(1, len(lines) + 1)]
    return pd.DataFrame(table, index=members, columns=members)


def _cars() -> Any:
    import pandas as pd

    words = _CARS.split()
    mpg, displacement, weight, time, cylinders, engine, shift, gears, carburettors = (words[i::9] for i in range(9))
    numbers = {"mpg": mpg, "displacement": displacement, "weight": weight, "quarter_mile": time}
    engines, shifts = ("V", "straight"), ("automatic", "manual")
    return _frame(
        {name: [float(word) for word in column] for name, column in numbers.items()}
        | {
            "cylinders": pd.Categorical(cylinders, ("4", "6", "8")),
            "engine": pd.Categorical.from_codes([int(word) for word in engine], engines),
            "transmission": pd.Categorical.from_codes([int(word) for word in shift], shifts),
            "gears": pd.Categorical(gears, ("3", "4", "5")),
            "carburettors": [int(word) for word in carburettors],
        }
    )


def _frame(columns: dict[str, Any]) -> Any:
    import pandas as pd

    return pd.DataFrame(columns)
