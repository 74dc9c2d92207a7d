"""Every tutorial runs as a person would run it, keeps its claims (it asserts them), and leaves nothing behind."""

import re
import runpy
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import image, pyplot

from latentzoo.models.registry import ENTRIES

TUTORIALS = sorted((Path(__file__).resolve().parents[1] / "tutorials").glob("*.py"))
EACH = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def cells(script: str) -> Iterator[tuple[bool, str]]:
    """Whether each cell of a percent-format script is text, and what stands in it."""
    _, *parts = re.split(r"(?m)^# %%(.*)$", script)
    for head, body in zip(parts[::2], parts[1::2], strict=True):
        yield head.strip() == "[markdown]", body


@pytest.fixture
def entries() -> Iterator[dict]:
    """The registry before the test, put back after it."""
    before = dict(ENTRIES)
    yield before
    ENTRIES.clear()
    ENTRIES.update(before)


def test_tutorials_are_numbered_from_one() -> None:
    assert TUTORIALS
    assert [path.name[:3] for path in TUTORIALS] == [f"{number:02d}_" for number in range(1, len(TUTORIALS) + 1)]


@EACH
def test_tutorial_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch_state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1]  # noqa: NPY002  the global one is the point
    settings = dict(matplotlib.rcParams)
    runpy.run_path(str(path))

    assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == []
    assert torch.get_default_dtype() == torch.float32
    assert entries == ENTRIES
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures"]

    promised = set(re.findall(r'save\(.*, "(\w+)"\)', path.read_text(encoding="utf-8")))
    written = {figure.stem: image.imread(figure) for figure in (tmp_path / "figures").iterdir()}
    assert len(promised) >= 2
    assert written.keys() == promised
    for name, picture in written.items():
        assert name.startswith(path.name[:3])
        assert picture.shape[0] > 300
        assert picture.shape[1] > 600
        assert picture[..., :3].std() > 0.02, f"{name} is blank"

    printed = capsys.readouterr().out
    assert len(printed.splitlines()) > 20
    assert not re.search(r"\bnan\b", printed)


@EACH
def test_tutorial_reads_as_a_notebook(path: Path) -> None:
    script = path.read_text(encoding="utf-8")
    assert script.startswith("# %% [markdown]\n# # ")
    found = list(cells(script))
    for is_text, body in found:
        lines = body.strip().splitlines()
        assert lines, "an empty cell"
        if is_text:
            assert all(line.startswith("#") for line in lines), f"code in a text cell: {lines}"
            assert body.count("$") % 2 == 0, f"a formula is not closed: {lines}"
        else:
            compile(body, path.name, "exec")  # each cell is whole by itself
            shown = [number for number, line in enumerate(lines) if re.match(r"save\(", line)]
            assert shown in ([], [len(lines) - 1]), "a notebook shows what the last line of a cell returns"
    assert sum("assert " in body for is_text, body in found if not is_text) >= 5
