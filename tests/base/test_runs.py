"""Run folders: what is written comes back bit for bit, and what cannot be written is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from latentzoo.inference.base import run_folder
from latentzoo.inference.base.errors import RunError
from latentzoo.inference.base.run_files import RUN_FILE
from latentzoo.inference.base.run_folder import FORMAT, read_run, write_run

ARRAYS = {"loc": torch.arange(6, dtype=torch.float64).reshape(2, 3), "weights": torch.tensor([0.25, 0.75])}
RECORD = {"model": "gaussian_mixture", "options": {"restarts": 20, "tol": 1e-6}}

FLOATS = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 5e-324, 1.7e308], dtype=torch.float64)
TENSORS = {
    "scalar": torch.tensor(3.5),
    "float64, with what is not finite": FLOATS,
    "a nan with a payload": torch.tensor([0x7FF8_0000_0000_BEEF, -1], dtype=torch.int64).view(torch.float64),
    "bfloat16": torch.randn(3, 2).bfloat16(),
    "float16": torch.randn(3, 2).half(),
    "complex": torch.randn(3, dtype=torch.complex64),
    "conjugated": torch.randn(3, dtype=torch.complex64).conj(),
    "int64": torch.tensor([2**63 - 1, -(2**63)]),
    "uint8": torch.arange(256, dtype=torch.uint8),
    "bool": torch.tensor([[True, False]]),
    "empty": torch.empty(0),
    "empty in the middle": torch.empty(2, 0, 3, dtype=torch.int32),
    "transposed": torch.arange(6.0).reshape(2, 3).mT,
    "strided": torch.arange(10)[::3],
    "expanded": torch.tensor([1.0]).expand(4, 3),
    "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    "a/name.with: odd \N{GREEK SMALL LETTER MU}": torch.ones(1),
    "": torch.ones(2),
}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    def content(tensor: torch.Tensor) -> bytes:
        return bytes(tensor.detach().resolve_conj().contiguous().flatten().view(torch.uint8).numpy())

    return a.dtype == b.dtype and a.shape == b.shape and (a.numel() == 0 or content(a) == content(b))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", ARRAYS, RECORD, version="0.1.0")


def text_of(folder: Path) -> str:
    """What the metadata of the run say, as JSON."""
    with safetensors.safe_open(folder / RUN_FILE, framework="pt") as file:
        (text,) = file.metadata().values()
    return str(text)


# --- round trips


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back_bit_for_bit(tmp_path: Path, name: str) -> None:
    arrays, _ = read_run(write_run(tmp_path, {name: TENSORS[name]}, {}))
    assert list(arrays) == [name]
    assert same_bits(arrays[name], TENSORS[name])
    assert arrays[name].is_contiguous()
    assert not arrays[name].requires_grad


def test_all_tensors_together_and_their_order(tmp_path: Path) -> None:
    arrays, _ = read_run(write_run(tmp_path, TENSORS, {}))
    assert list(arrays) == list(TENSORS)
    assert all(same_bits(arrays[name], TENSORS[name]) for name in TENSORS)


def test_views_of_one_tensor_come_back_apart(tmp_path: Path) -> None:
    base = torch.zeros(4)
    arrays, _ = read_run(write_run(tmp_path, {"a": base, "b": base[:2], "c": base}, {}))
    arrays["a"].fill_(1.0)  # and what comes back can be written to
    assert arrays["b"].tolist() == [0.0, 0.0]
    assert arrays["c"].tolist() == [0.0] * 4


def test_the_writer_does_not_touch_what_it_is_given(tmp_path: Path) -> None:
    arrays, record = {"p": torch.nn.Parameter(torch.ones(2))}, {"t": (1, 2)}
    write_run(tmp_path, arrays, record)
    assert isinstance(arrays["p"], torch.nn.Parameter)
    assert record == {"t": (1, 2)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_of_a_gpu_comes_back_on_the_cpu(tmp_path: Path) -> None:
    arrays, _ = read_run(write_run(tmp_path, {"x": FLOATS.cuda()}, {}))
    assert arrays["x"].device.type == "cpu"
    assert same_bits(arrays["x"], FLOATS)


def test_a_record_comes_back(tmp_path: Path) -> None:
    record = {
        "none": None,
        "flags": [True, False],
        "tuple": (1, (2, "three")),
        "floats": [0.1, -0.0, 5e-324, 2.0**60],
        "numpy": [np.int64(7), np.float32(0.5), np.bool_(True)],
        "text": 'quotes " and \\ and \n and \N{GREEK SMALL LETTER MU} and a lone \ud800',
        "big": 2**80,
        "nested": {"a": {"b": [{}, []]}},
    }
    _, back = read_run(write_run(tmp_path, {}, record))
    assert back == record | {"tuple": [1, [2, "three"]], "numpy": [7, 0.5, True]}
    assert [type(value) for value in back["numpy"]] == [int, float, bool]
    assert str(back["floats"][1]) == "-0.0"


def test_floats_that_are_not_finite_come_back_from_strict_json(tmp_path: Path) -> None:
    folder = write_run(tmp_path, {}, {"history": [1.0, float("inf"), -np.inf, float("nan"), np.float32("nan")]})
    _, back = read_run(folder)
    assert str(back["history"]) == "[1.0, inf, -inf, nan, nan]"

    def refuse(token: str) -> None:
        raise AssertionError(token)

    json.loads(text_of(folder), parse_constant=refuse)


def test_the_file_says_who_wrote_it(run: Path) -> None:
    told = json.loads(text_of(run))
    assert told["format"] == FORMAT
    assert told["versions"]["latentzoo"] == "0.1.0"
    assert told["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d+\.\d+.*", told["versions"]["pyro"])
    assert told["arrays"] == ["loc", "weights"]
    assert told["record"] == RECORD


def test_the_digest_is_of_all_bytes_but_its_own(run: Path) -> None:
    content, digest = (run / RUN_FILE).read_bytes(), json.loads(text_of(run))["sha256"]
    assert content.count(digest.encode()) == 1
    assert hashlib.sha256(content.replace(digest.encode(), b"0" * 64)).hexdigest() == digest


def test_any_program_reads_the_arrays(run: Path) -> None:
    found = safetensors.torch.load_file(run / RUN_FILE)
    assert all(same_bits(found[name], ARRAYS[name]) for name in ARRAYS)


def test_a_second_run_replaces_the_first_and_nothing_else(run: Path) -> None:
    others = ("figure.png", "arrays-of-mine.safetensors", ".run-notes.tmp", "table.csv")
    for name in others:
        (run / name).write_text(name)
    (run / f".run-{'0' * 16}.tmp").write_text("what a killed writer left")
    write_run(run, {"new": torch.ones(1)}, {"step": 2})
    arrays, record = read_run(run)
    assert list(arrays) == ["new"]
    assert record == {"step": 2}
    assert {path.name for path in run.iterdir()} == {*others, RUN_FILE}
    assert all((run / name).read_text() == name for name in others)


def test_the_same_run_twice_is_one_run(run: Path) -> None:
    before = (run / RUN_FILE).read_bytes()
    write_run(run, ARRAYS, RECORD, version="0.1.0")
    assert (run / RUN_FILE).read_bytes() == before


def test_files_have_the_permissions_of_any_new_file(run: Path) -> None:
    (run / "figure.png").touch()
    assert {path.stat().st_mode for path in run.iterdir()} == {(run / "figure.png").stat().st_mode}


# --- what cannot be written


def test_a_file_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    safetensors.torch.save_file({"mine": torch.ones(2)}, tmp_path / RUN_FILE)
    before = (tmp_path / RUN_FILE).read_bytes()
    with pytest.raises(RunError, match=r"holds a run.safetensors that is not from latentzoo: give another folder"):
        write_run(tmp_path, ARRAYS, RECORD)
    with pytest.raises(RunError, match=r"run.safetensors is not from latentzoo"):
        read_run(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {RUN_FILE: before}


def test_a_damaged_run_can_be_replaced(run: Path) -> None:
    content = (run / RUN_FILE).read_bytes()
    for damaged in (b"", content[:5], content[:90], content[:-3], content.replace(b"sha256", b"sha265")):
        (run / RUN_FILE).write_bytes(damaged)
        assert read_run(write_run(run, ARRAYS, RECORD))[1] == RECORD


@pytest.mark.parametrize(
    ("arrays", "record", "met"),
    [
        ({"x": [1.0]}, {}, "array 'x' is a list; expected a torch.Tensor"),
        ({"x": torch.eye(2).to_sparse()}, {}, "array 'x' is a torch.sparse_coo tensor; expected a dense one"),
        ({"x": torch.ones(2, device="meta")}, {}, "array 'x' is a meta tensor; expected a dense one"),
        ({"x": torch.ones(2, dtype=torch.complex128)}, {}, "array 'x' is torch.complex128"),
        ({"x": torch.ones(2).to(torch.float8_e8m0fnu)}, {}, "array 'x' is torch.float8_e8m0fnu"),
        ({3: torch.ones(2)}, {}, "an array is named 3; expected a string"),
        ({"__metadata__": torch.ones(2)}, {}, "an array is named '__metadata__'"),
        ({}, {"a": {"b": [1, torch.ones(2)]}}, "record['a']['b'][1] is a Tensor"),
        ({}, {"path": Path("x")}, "record['path'] is a "),
        ({}, {"f": print}, "record['f'] is a builtin_function_or_method"),
        ({}, {"a": {1: 2}}, "record['a'] has the key 1; expected a string"),
        ({}, {"a": {"$float": "nan"}}, "record['a'] has the key '$float'"),
    ],
)
def test_what_the_format_cannot_hold_is_named(run: Path, arrays: Any, record: Any, met: str) -> None:
    with pytest.raises(RunError) as caught:
        write_run(run, arrays, record)
    assert met in str(caught.value)
    assert str(caught.value).startswith(f"{run}: ")
    assert "\n" not in str(caught.value)
    assert read_run(run)[1] == RECORD  # the run that was there is whole


def test_a_record_without_end_is_refused(run: Path) -> None:
    record: dict[str, Any] = {}
    record["self"] = record
    with pytest.raises(RunError, match="nested deeper than 64 levels"):
        write_run(run, {}, record)


def test_a_record_that_should_be_an_array_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_MAX_RECORD_BYTES", 10_000)
    with pytest.raises(RunError, match="at most 10000 fit: use arrays"):
        write_run(run, {}, {"history": list(range(10_000))})
    monkeypatch.undo()
    assert read_run(run)[1] == RECORD


def test_a_full_disk_leaves_the_run_whole_and_no_litter(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_run(run, {"x": torch.ones(3)}, {})
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for call in (lambda: write_run(tmp_path / "run", {}, {}), lambda: read_run(tmp_path / "run")):
        with pytest.raises(RunError, match=r"run: is a file"):
            call()
