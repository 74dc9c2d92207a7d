"""Run folders: whatever is wrong with one is named in one plain line, and nothing in it is run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from latentzoo.inference.base import run_folder
from latentzoo.inference.base.errors import RunError
from latentzoo.inference.base.run_files import RUN_FILE
from latentzoo.inference.base.run_folder import read_run, write_run

ARRAYS = {"loc": torch.arange(6, dtype=torch.float64).reshape(2, 3), "weights": torch.tensor([0.25, 0.75])}
RECORD = {"model": "gaussian_mixture", "log_likelihood": -12.5, "converged": True, "seed": 0, "tags": ["a", None]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", ARRAYS, RECORD, version="0.1.0")


def forged(text: str, arrays: dict[str, torch.Tensor] = ARRAYS, **metadata: str) -> bytes:
    """A file with other metadata, whose digest is right."""
    zeros = b"0" * 64
    content = safetensors.torch.save(arrays, {"latentzoo run": text, **metadata})
    return content.replace(zeros, hashlib.sha256(content).hexdigest().encode(), 1)


def told(**changes: Any) -> dict[str, Any]:
    versions = {"latentzoo": None, "torch": "2.10.0", "pyro": None}
    return {"sha256": "0" * 64, "format": 2, "versions": versions, "arrays": ["loc", "weights"], "record": {}} | changes


def without(name: str) -> str:
    return json.dumps({key: value for key, value in told().items() if key != name})


def headed(header: bytes, body: bytes = b"\0" * 8) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


OTHERS = safetensors.torch.save(ARRAYS)
OVERLAP = b'{"__metadata__":{"latentzoo run":%b},"loc":{"dtype":"F64","shape":[10000,10000],"data_offsets":[0,8]}}'

CONTENTS: dict[str, tuple[bytes | Callable[[bytes], bytes], str]] = {
    "empty": (b"", "is cut short, or is no safetensors file"),
    "a few bytes": (lambda content: content[:7], "is cut short, or is no safetensors file"),
    "header cut short": (lambda content: content[:100], "is cut short, or is no safetensors file"),
    "arrays cut short": (lambda content: content[:-9], "were written: save the fit again"),
    "too long": (lambda content: content + b"x", "were written: save the fit again"),
    "a pickle": (b"\x80\x04\x95garbage" * 10, "is cut short, or is no safetensors file"),
    "huge header": (headed(b"{}")[:0] + (2**62).to_bytes(8, "little") + b"{}" * 64, "is cut short, or is no"),
    "header no text": (headed(b"\xff\xfe{}"), "the header of run.safetensors is damaged"),
    "header too deep": (headed(b"[" * 200_000), "the header of run.safetensors is damaged (nested too deep)"),
    "header a list": (headed(b"[1, 2]"), "has no header of safetensors"),
    "header with NaN": (headed(b'{"x": NaN}'), "the header of run.safetensors is damaged (NaN is not JSON)"),
    "metadata a number": (headed(b'{"__metadata__": 3}'), "has no header of safetensors"),
    "of another program": (OTHERS, "run.safetensors is not from latentzoo"),
    "metadata of another program": (
        safetensors.torch.save(ARRAYS, {"format": "pt"}),
        "run.safetensors is not from latentzoo",
    ),
    "metadata not JSON": (forged("3 4"), "the record in run.safetensors is damaged"),
    "metadata a list": (forged("[1]"), "run.safetensors is [1], expected an object"),
    "1e999": (forged(json.dumps(told()).replace("{}", '{"x": 1e999}')), "(1e999 is too large for a number)"),
    "a number of 5000 digits": (forged(json.dumps(told()).replace("{}", '{"x": 1' + "0" * 5000 + "}")), "is damaged"),
    "a field twice": (forged(json.dumps(told()).replace("{}", '{"x": 1, "x": 2}')), "('x' stands twice)"),
    "newer format": (forged(json.dumps({"format": 7})), "written by format 7, this reads up to 2: upgrade latentzoo"),
    "format zero": (forged(json.dumps(told(format=0))), "is not of format 2"),
    "format in words": (forged(json.dumps(told(format="two"))), "run.safetensors.format is 'two', expected a whole"),
    "format a bool": (forged(json.dumps(told(format=True))), "format is True, expected a whole number"),
    "no digest": (forged(without("sha256")), "run.safetensors lacks the field 'sha256'"),
    "no record": (forged(without("record")), "run.safetensors lacks the field 'record'"),
    "an unknown field": (forged(json.dumps(told(extra=1))), "has the field 'extra', which is none of sha256, format"),
    "record a list": (forged(json.dumps(told(record=[]))), "run.safetensors.record is [], expected an object"),
    "names a number": (forged(json.dumps(told(arrays=["loc", 3]))), "run.safetensors.arrays[1] is 3, expected text"),
    "versions a list": (forged(json.dumps(told(versions=[]))), "run.safetensors.versions is [], expected an object"),
    "more metadata": (forged(json.dumps(told()), more="x"), "is not of format 2"),
    "digest of another length": (forged(json.dumps(told(sha256="ab"))), "has no digest"),
    "digest of other bytes": (forged(json.dumps(told(sha256="ab" * 32))), "its sha256 differs"),
    "an array less": (forged(json.dumps(told()), {"loc": ARRAYS["loc"]}), "names other arrays than it holds"),
    "an array more": (forged(json.dumps(told()), ARRAYS | {"z": torch.ones(1)}), "names other arrays than it holds"),
    "shape beyond the data": (
        headed(OVERLAP % json.dumps(json.dumps(told())).encode()),
        "its sha256 differs",
    ),
    "offsets of text": (
        headed(OVERLAP.replace(b"[0,8]", b'"0"') % json.dumps(json.dumps(told())).encode()),
        "does not say where its array 'loc' is",
    ),
}


@pytest.mark.parametrize("damage", CONTENTS)
def test_a_damaged_file_is_named_in_one_plain_line(run: Path, damage: str) -> None:
    content, met = CONTENTS[damage]
    path = run / RUN_FILE
    path.write_bytes(content(path.read_bytes()) if callable(content) else content)
    with pytest.raises(RunError) as caught:
        read_run(run)
    assert met in str(caught.value)
    assert str(caught.value).startswith(f"{run}: ")
    assert "\n" not in str(caught.value)


def test_a_forged_file_with_a_right_digest_is_read(run: Path) -> None:
    """So what is refused above is refused for what is wrong with it."""
    (run / RUN_FILE).write_bytes(forged(json.dumps(told(record={"x": 1}))))
    assert read_run(run)[1] == {"x": 1}


def test_a_forged_shape_with_a_right_digest_is_refused(run: Path) -> None:
    content = headed(OVERLAP % json.dumps(json.dumps(told(arrays=["loc"]))).encode())
    (run / RUN_FILE).write_bytes(content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1))
    with pytest.raises(RunError, match=r"run.safetensors holds no arrays \("):
        read_run(run)


def test_a_bit_flipped_anywhere_is_refused_in_one_plain_line(run: Path) -> None:
    path = run / RUN_FILE
    content = path.read_bytes()
    for place in range(len(content)):
        for bit in (place % 8, 5):  # 5 turns a letter from small to large
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(RunError) as caught:
                read_run(run)
            assert str(caught.value).startswith(f"{run}: ")
            assert "\n" not in str(caught.value)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (shutil.rmtree, "does not exist; expected the folder of a saved run"),
    "no run": (lambda folder: (folder / RUN_FILE).unlink(), "has no run.safetensors"),
    "a folder in its place": (
        lambda folder: ((folder / RUN_FILE).unlink(), (folder / RUN_FILE).mkdir()),
        "has no run.safetensors",
    ),
}


@pytest.mark.parametrize("damage", FOLDERS)
def test_a_folder_without_a_run(run: Path, damage: str) -> None:
    apply, met = FOLDERS[damage]
    apply(run)
    with pytest.raises(RunError) as caught:
        read_run(run)
    assert str(caught.value).startswith(f"{run}: {met}")


def test_a_huge_file_is_not_read(run: Path) -> None:
    os.truncate(run / RUN_FILE, 2**40)  # a sparse file: a terabyte to read, nothing on disk
    with pytest.raises(RunError, match="has 1099511627776 bytes"):
        read_run(run)


def test_a_run_that_may_not_be_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, mode: str) -> Any:  # file modes would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_folder, "open", deny, raising=False)
    with pytest.raises(RunError, match=r"run.safetensors cannot be read \(Permission denied\): "):
        read_run(run)
