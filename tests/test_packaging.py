"""The root of the repository is the package `latentzoo`: what ships is exactly its modules, under that one name."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import latentzoo

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("cli", "inference", "models")
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]


def module_files() -> set[Path]:
    """Every .py file of the package, relative to the root."""
    files = [*ROOT.glob("*.py"), *(file for folder in FOLDERS for file in ROOT.glob(f"{folder}/**/*.py"))]
    return {file.relative_to(ROOT) for file in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built through the source distribution, from a copy: a build in place packs what older ones left."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    leave_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "shared")
    shutil.copytree(ROOT, source, ignore=leave_out)
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


def test_packages_listed_are_the_folders() -> None:
    folders = {file.parent for file in module_files()}
    assert {folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()} == set()
    assert sorted(PACKAGES) == sorted(".".join(("latentzoo", *folder.parts)) for folder in folders)


def test_version_is_the_projects() -> None:
    assert latentzoo.__version__ == importlib.metadata.version("latentzoo") == PROJECT["project"]["version"]


def test_library_is_loaded_once() -> None:
    """pytest runs the root's __init__.py again by the folder's name: relative imports there would load a second zoo."""
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    assert [name for name, file in files.items() if file == latentzoo.zoo.__file__] == ["latentzoo.zoo"]


def test_wheel_ships_the_modules_and_nothing_else(wheel: Path) -> None:
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    info = Path(f"latentzoo-{latentzoo.__version__}.dist-info")
    shipped = {name for name in names if name.parts[0] != info.name}
    tables = {path.relative_to(ROOT) for path in (ROOT / "inference" / "data" / "bundled").glob("*.csv")}
    assert tables
    assert shipped == {Path("latentzoo") / file for file in module_files() | tables}
    assert {info / "entry_points.txt", info / "licenses" / "LICENSE"} <= set(names)


def test_wheel_imports_by_itself(wheel: Path, tmp_path: Path) -> None:
    """Every module imports from the wheel alone, far from the checkout, and nothing is imported by a bare name."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    modules = [".".join(("latentzoo", *file.with_suffix("").parts)) for file in sorted(module_files())]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "ours = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'latentzoo']\n"
        f"assert ours and all(file.startswith({str(site)!r}) for file in ours), ours\n"
        "assert not {'cli', 'models', 'inference', 'zoo'} & sys.modules.keys()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
