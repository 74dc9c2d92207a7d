"""Bags of words of the docstrings of installed packages: two bundled data sets, a small and a large one.

Both are made of the versions that are installed, so their sizes differ a little from machine to machine.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

# --- the small one: functions of SciPy --------------------------------------------------------------------------------

# each speaks of something of its own, so that there are topics to be found
MODULES = ("fft", "integrate", "interpolate", "linalg", "optimize", "signal", "spatial.distance", "stats")
EACH = 40  # functions of a module, the first by name


def docstrings() -> Any:
    """One row for each function, one column for each word, how often it stands in the docstring."""
    texts = {}
    for module in MODULES:
        found = vars(importlib.import_module(f"scipy.{module}"))
        functions = [one for one in sorted(found) if one[0].islower() and callable(found[one]) and found[one].__doc__]
        for function in functions[:EACH]:
            text = re.split(r"\n\s*(?:References|Examples)\s*\n", found[function].__doc__)[0]
            texts[f"{module}.{function}"] = re.findall(r"[a-z]{3,}", text.lower())
    return _table(texts, fewest=5, most=0.5, words=200)


# --- the large one: several packages ----------------------------------------------------------------------------------

# package -> folders that are left out: old, copied from elsewhere, or of use to its makers only
PACKAGES: dict[str, tuple[str, ...]] = {
    "matplotlib": ("externals", "sphinxext"),
    "networkx": (),
    "numpy": ("distutils", "f2py", "typing", "_typing", "_pyinstaller"),
    "scipy": ("_lib", "_external", "_build_utils"),
    "pandas": ("_config", "_libs", "compat"),
    "sklearn": ("externals", "_build_utils"),
    "xarray": ("compat",),
}
TESTS = {"tests", "test", "testing", "_testing", "conftest"}
SHORTEST = 40  # words of a docstring

# What is no running text, in the order in which it is taken out.
CUTS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^(?:Examples?|References|See Also|Methods)\n-{3,}\n(?:.*\n?(?!.*\n-{3,}$))*",  # sections without prose
        r"^( *)\.\. math::.*\n(?:(?:\1 +.*)?\n)*",  # formulas with the lines that are indented under them
        r"^(?:\S.*\n)?(?:-{3,}|={3,})$",  # headings
        r"^ *(?:\.\. |>>> |Read more in ).*$",  # directives, code, pointers to a guide
        r"^[\w*][^\n:]* : .*$",  # names and types of parameters
        r":\w+:`[^`]*`",  # roles
        r"`+[^`]*`+",  # names and code
        r"https?://\S+",
        r"%\(\w+\)s|\{\w+\}",  # what is filled in at import
    )
)
# From a definition to the end of the next docstring: to read what functions do would take most of the time.
HEAD = re.compile(r"^(?:class|def) [\s\S]*?(\"\"\"|''')[\s\S]*?\1", re.MULTILINE)
WORD = re.compile(r"(?<![\w.\\])[a-z]{3,}(?![\w(=])")


def documentation() -> Any:
    """One row for each public function and class, one column for each word, how often it stands in the prose of the
    docstring. Docstrings of the same words stand there once. The sources are read, not imported, once in a process.
    """
    return _documentation().copy()


@cache
def _documentation() -> Any:
    texts: dict[str, list[str]] = {}
    for package, left_out in PACKAGES.items():
        for name, text in _documented(package, {*left_out, *TESTS}):
            words = words_of(text)
            if len(words) >= SHORTEST:
                texts.setdefault(name, words)
    table = _table(texts, fewest=20, most=0.25, words=800)
    return table[~table.duplicated()]


def _documented(package: str, left_out: set[str]) -> Iterator[tuple[str, str]]:
    """Name and docstring of what stands at the outermost level of the package's files, in their order. Of a name, the
    file is left out where it is private: ``scipy.optimize._minimize.minimize`` is known as ``scipy.optimize.minimize``.
    """
    found = importlib.util.find_spec(package)
    for root in (found.submodule_search_locations or ()) if found else ():
        for path in sorted(Path(root).rglob("*.py")):
            *folders, file = path.relative_to(root).with_suffix("").parts
            if left_out.intersection((*folders, file)):
                continue
            where = [package, *folders] if file.startswith("_") else [package, *folders, file]
            for head in HEAD.finditer(path.read_text(encoding="utf-8", errors="replace")):
                for node in _nodes(head[0]):
                    if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                        yield ".".join((*where, node.name)), ast.get_docstring(node) or ""


def _nodes(source: str) -> list[ast.stmt]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Python thinks of the escapes in other people's strings
            return ast.parse(source).body
    except SyntaxError:  # the triple quote that ends the head was not that of a docstring
        return []


def words_of(text: str) -> list[str]:
    """The words of three letters and more in the running text of a docstring in NumPy's style."""
    for cut in CUTS:
        text = cut.sub(" ", text)
    return WORD.findall(text.lower())


# --- both -------------------------------------------------------------------------------------------------------------


def _table(texts: dict[str, list[str]], fewest: int, most: float, words: int) -> Any:
    """Counts of the `words` most frequent that stand in at least `fewest` texts and at most a share `most` of them.
    Texts of fewer than ten such words are left out.
    """
    import numpy as np
    import pandas as pd
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    bags = [Counter(word for word in text if word not in ENGLISH_STOP_WORDS) for text in texts.values()]
    spread = Counter(word for bag in bags for word in bag)
    total: Counter[str] = Counter()
    for bag in bags:
        total.update(bag)
    known = [word for word in sorted(total) if fewest <= spread[word] <= int(most * len(bags))]
    vocabulary = sorted(sorted(known, key=lambda word: -total[word])[:words])
    place = {word: v for v, word in enumerate(vocabulary)}
    table = np.zeros((len(bags), len(vocabulary)), dtype=np.int64)
    for row, bag in zip(table, bags, strict=True):
        for word, number in bag.items():
            if word in place:
                row[place[word]] = number
    kept = table.sum(1) >= 10
    return pd.DataFrame(table[kept], [name for name, keep in zip(texts, kept, strict=True) if keep], vocabulary)
