"""The rules of the house: packages from the ground up, no circle, no late import of our own, no private name abroad."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ORDER = (
    "base data trace distributions families program nn optimize linear_gaussian cavi em svi amortized posterior "
    "diagnose io plots fit drivers"
).split()
RANK = {name: place for place, name in enumerate(ORDER)} | {"pair": 2, "io": ORDER.index("diagnose")}
FOR_MODELS = RANK["linear_gaussian"]
FILES = {path.relative_to(ROOT).with_suffix("").parts: path for path in (ROOT / "inference").rglob("*.py")}
ABOVE = {path.relative_to(ROOT).with_suffix("").parts: path for path in (ROOT / "models").rglob("*.py")}


def imports(parts: tuple[str, ...], path: Path) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """(file imported from, name, whether at the top) for every import of our own."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        where = (*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else ()))
        for alias in node.names:
            inner = (*where, alias.name)
            yield (inner if inner in FILES else where), alias.name, id(node) in top


def package(parts: tuple[str, ...]) -> str:
    return parts[1]


@pytest.mark.parametrize("parts", sorted(FILES), ids="/".join)
def test_a_file_imports_from_its_package_and_those_below(parts: tuple[str, ...]) -> None:
    if parts == ("inference", "__init__"):
        return
    assert package(parts) in RANK, f"inference/{package(parts)} is no package of the house"
    for where, name, top in imports(parts, FILES[parts]):
        assert where[0] == "inference", f"{'/'.join(parts)} imports {'.'.join(where)}, which stands above inference"
        assert RANK[package(where)] <= RANK[package(parts)], f"{'/'.join(parts)} imports upward, {'.'.join(where)}"
        assert not name.startswith("_"), f"{'/'.join(parts)} imports the private name {name} of {'.'.join(where)}"
        # matplotlib takes half a second to import, and a fit draws only when asked
        assert top or (parts[1:], package(where)) == (("fit",), "plots"), f"{'/'.join(parts)} imports {name} late"


def test_no_circle_of_files() -> None:
    graph = {parts: {where for where, _, _ in imports(parts, path)} - {parts} for parts, path in FILES.items()}
    graph[("inference", "fit")] -= {where for where in graph[("inference", "fit")] if package(where) == "plots"}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("parts", sorted(ABOVE), ids="/".join)
def test_models_use_the_ground_floors(parts: tuple[str, ...]) -> None:
    for where, _, _ in imports(parts, ABOVE[parts]):
        if where[0] == "inference":
            assert RANK[package(where)] <= FOR_MODELS, f"{'/'.join(parts)} imports {'.'.join(where)}"


def test_only_the_drivers_make_fits() -> None:
    """And only `fit.py` defines one."""
    makers = [
        "/".join(parts[1:])
        for parts, path in FILES.items()
        if any(
            isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Fit"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert makers == ["drivers/finish"]


@pytest.mark.parametrize("name", [name for name in ORDER if name != "fit"])
def test_a_package_says_what_lives_there_and_what_it_offers(name: str) -> None:
    package = importlib.import_module(f"latentzoo.inference.{name}")
    assert package.__doc__
    assert len(package.__doc__.strip().splitlines()) <= 6
    assert package.__all__
    assert len(set(package.__all__)) == len(package.__all__)
    assert not set(package.__all__) & {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert set(package.__all__) <= set(dir(package))
    for offered in package.__all__:
        value = getattr(package, offered)
        assert getattr(value, "__module__", package.__name__).startswith(package.__name__), f"{offered} is of another"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_the_root_offers_what_it_says() -> None:
    root = importlib.import_module("latentzoo")
    assert set(root.__all__) <= {*dir(root), "__version__"}
    for offered in root.__all__:
        assert getattr(root, offered)
    assert root.em.__name__ == "em"
    with pytest.raises(AttributeError, match="module 'latentzoo' has no attribute 'nothing'"):
        _ = root.nothing


def test_every_name_in_the_readme_of_the_house_is_there() -> None:
    page = (ROOT / "inference" / "README.md").read_text()
    assert len(page.splitlines()) < 100
    named = [found for found in re.findall(r"`([\w/.]+)`", page) if "/" in found and not found.startswith("tests/")]
    assert len(named) > 40
    for found in named:
        path, _, name = found.partition(".")
        if name in ("", "py"):
            assert (ROOT / found).exists() or (ROOT / "inference" / found).exists(), f"{found} is not there"
            continue
        value: object = importlib.import_module(f"latentzoo.inference.{path.replace('/', '.')}")
        for part in name.split("."):
            value = getattr(value, part)
    assert {package for package in ORDER if not re.search(rf"\b{package}\b", page)} == set()
