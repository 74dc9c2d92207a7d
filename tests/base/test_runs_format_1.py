"""Run folders of format 1, which are read still: everything that can be wrong with one is named in one plain line."""

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

from latentzoo.inference.base import run_folder_1
from latentzoo.inference.base.errors import RunError
from latentzoo.inference.base.run_files import RUN_FILE, has_run
from latentzoo.inference.base.run_folder import read_run, write_run

ARRAYS = {"loc": torch.arange(6, dtype=torch.float64).reshape(2, 3), "weights": torch.tensor([0.25, 0.75])}


RECORD = {"model": "gaussian_mixture", "bounds": [1.5, {"$float": "-inf"}]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as latentzoo 0.1 wrote it."""
    folder = tmp_path / "run"
    folder.mkdir()
    payload = safetensors.torch.save(ARRAYS)
    sha256 = hashlib.sha256(payload).hexdigest()
    tensors = {n: {"shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in ARRAYS.items()}
    file = f"arrays-{sha256[:12]}.safetensors"
    (folder / file).write_bytes(payload)
    described = {"file": file, "sha256": sha256, "bytes": len(payload), "tensors": tensors}
    versions = {"latentzoo": None, "torch": "2.10.0", "pyro": "1.9.1"}
    header = {"kind": "latentzoo run", "format": 1, "versions": versions, "arrays": described, "record": RECORD}
    (folder / "run.json").write_text(json.dumps(header, indent=1))
    return folder


def test_a_run_of_format_1_is_read(run: Path) -> None:
    arrays, record = read_run(run)
    assert list(arrays) == list(ARRAYS)
    assert all(torch.equal(arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert record == {"model": "gaussian_mixture", "bounds": [1.5, float("-inf")]}
    assert has_run(run)


def test_a_run_of_today_takes_its_place(run: Path) -> None:
    (run / "figure.png").write_text("mine")
    write_run(run, ARRAYS, {"step": 2})
    assert {path.name for path in run.iterdir()} == {RUN_FILE, "figure.png"}
    assert read_run(run)[1] == {"step": 2}


def test_a_run_of_today_beside_it_is_the_one_that_is_read(run: Path) -> None:
    """As a writer leaves them that is killed before it has taken the old one away."""
    new = write_run(run.parent / "new", ARRAYS, {"step": 2})
    shutil.copy(new / RUN_FILE, run)
    assert read_run(run)[1] == {"step": 2}


def test_a_run_json_of_another_program_stays(run: Path) -> None:
    (run / "run.json").write_text('{"lr": 0.1}')
    write_run(run, ARRAYS, {"step": 2})
    assert (run / "run.json").read_text() == '{"lr": 0.1}'
    assert read_run(run)[1] == {"step": 2}


def header_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def arrays_of(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def forge(folder: Path, payload: bytes, **tensors: Any) -> None:
    """Put other arrays into the folder, with a run.json that matches them in name, size and hash."""
    arrays_of(folder).unlink()
    header, sha256 = header_of(folder), hashlib.sha256(payload).hexdigest()
    header["arrays"] |= {"file": f"arrays-{sha256[:12]}.safetensors", "sha256": sha256, "bytes": len(payload)}
    header["arrays"]["tensors"] |= tensors
    (folder / header["arrays"]["file"]).write_bytes(payload)
    (folder / "run.json").write_text(json.dumps(header))


def damage_json(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        header = header_of(folder)
        change(header)
        (folder / "run.json").write_text(json.dumps(header))

    return apply


def damage_text(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "run.json").write_bytes(change((folder / "run.json").read_bytes()))


def damage_arrays(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda folder: arrays_of(folder).write_bytes(change(arrays_of(folder).read_bytes()))


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def elsewhere(folder: Path) -> None:
    """The arrays, whole, one folder up, and a run.json that leads there."""
    name = arrays_of(folder).name
    shutil.move(folder / name, folder.parent / name)
    damage_json(lambda header: header["arrays"].update(file=f"../{name}"))(folder)


def renamed(folder: Path) -> None:
    arrays_of(folder).rename(folder / "weights.safetensors")
    damage_json(lambda header: header["arrays"].update(file="weights.safetensors"))(folder)


OTHER = safetensors.torch.save({"loc": torch.ones(3, 2, dtype=torch.float64), "weights": torch.ones(2)})
FEWER = safetensors.torch.save({"loc": torch.ones(2, 3, dtype=torch.float64)})
MORE = safetensors.torch.save({**ARRAYS, "z": torch.ones(1)})
HUGE_HEADER = (2**62).to_bytes(8, "little") + b"{}" + b" " * 64
OVERLAP = b'{"loc":{"dtype":"F64","shape":[1000000,1000000],"data_offsets":[0,8]}}'
NAN_JSON = b'{"kind": "latentzoo run", "format": 1, "x": NaN}'

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (shutil.rmtree, "does not exist; expected the folder of a saved run"),
    "no run.json": (lambda folder: (folder / "run.json").unlink(), "has no run.safetensors"),
    "run.json is a folder": (
        lambda folder: ((folder / "run.json").unlink(), (folder / "run.json").mkdir()),
        "has no run.safetensors",
    ),
    "run.json empty": (damage_text(lambda text: b""), "is cut short or is not JSON"),
    "run.json cut short": (damage_text(lambda text: text[: len(text) // 2]), "is cut short or is not JSON"),
    "run.json binary": (damage_text(lambda text: b"\x80\x04\x95" + text), "is cut short or is not JSON"),
    "run.json with NaN": (damage_text(lambda text: NAN_JSON), "is not JSON (NaN is not JSON)"),
    "run.json too deep": (damage_text(lambda text: b"[" * 200_000), "is not JSON (nested too deep)"),
    "run.json a list": (damage_text(lambda text: b"[1, 2]"), "run.json is not from latentzoo"),
    "foreign run.json": (damage_text(lambda text: b'{"lr": 0.1, "format": 1}'), "run.json is not from latentzoo"),
    "format in words": (damage_json(lambda h: h.update(format="csv")), "run.json is not from latentzoo"),
    "another format": (
        damage_json(lambda h: (h.pop("arrays"), h.update(format=7, tensors=[]))),
        "lacks the fields of format 1",
    ),
    "format zero": (damage_json(lambda h: h.update(format=0)), "lacks the fields of format 1"),
    "a foreign key": (damage_json(lambda h: h.update(extra=1)), "lacks the fields of format 1"),
    "a key less": (damage_json(lambda h: h.pop("record")), "lacks the fields of format 1"),
    "record a list": (damage_json(lambda h: h.update(record=[])), "lacks the fields of format 1"),
    "arrays undescribed": (damage_json(lambda h: h.update(arrays="x")), "does not describe its arrays"),
    "no hash": (damage_json(lambda h: h["arrays"].pop("sha256")), "does not describe its arrays"),
    "size in words": (damage_json(lambda h: h["arrays"].update(bytes="12")), "gives no size, or no shapes"),
    "shapes in words": (damage_json(lambda h: h["arrays"].update(tensors="loc")), "gives no size, or no shapes"),
    "arrays elsewhere": (elsewhere, "run.json names its arrays '../arrays-"),
    "arrays at the root": (damage_json(lambda h: h["arrays"].update(file="/etc/passwd")), "names its arrays '/etc/pas"),
    "arrays renamed": (renamed, "run.json names its arrays 'weights.safetensors'"),
    "arrays a number": (damage_json(lambda h: h["arrays"].update(file=3)), "run.json names its arrays 3"),
    "arrays missing": (lambda folder: arrays_of(folder).unlink(), "is missing, and run.json needs it"),
    "arrays cut short": (damage_arrays(lambda content: content[:-9]), "of the 184 bytes that were written"),
    "arrays too long": (damage_arrays(lambda content: content + b"x"), "has more than the expected 184 bytes"),
    "arrays altered": (damage_arrays(flip), "is not what was written, its sha256 differs"),
    "forged, not safetensors": (lambda folder: forge(folder, b"\x80\x04\x95garbage"), "is not a safetensors file"),
    "forged, huge header": (lambda folder: forge(folder, HUGE_HEADER), "is not a safetensors file"),
    "forged, shape beyond the data": (
        lambda folder: forge(folder, len(OVERLAP).to_bytes(8, "little") + OVERLAP + b"\0" * 8),
        "is not a safetensors file",
    ),
    "forged, another shape": (lambda folder: forge(folder, OTHER), "array 'loc' is {'shape': [3, 2]"),
    "forged, an array less": (lambda folder: forge(folder, FEWER), "array 'weights' is None; run.json says {"),
    "forged, an array more": (lambda folder: forge(folder, MORE), "array 'z' is {'shape': [1]"),
    "forged, another type": (
        lambda folder: forge(folder, arrays_of(folder).read_bytes(), loc={"shape": [2, 3], "dtype": "float32"}),
        "array 'loc' is {'shape': [2, 3], 'dtype': 'float64'}; run.json says {'shape': [2, 3], 'dtype': 'float32'}",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named_in_one_plain_line(run: Path, damage: str) -> None:
    apply, met = DAMAGES[damage]
    apply(run)
    with pytest.raises(RunError) as caught:
        read_run(run)
    assert met in str(caught.value)
    assert str(caught.value).startswith(f"{run}: ")
    assert "\n" not in str(caught.value)


def test_a_huge_run_json_is_not_read(run: Path) -> None:
    os.truncate(run / "run.json", 2**40)  # a sparse file: a terabyte to read, nothing on disk
    with pytest.raises(RunError, match="has more than the expected"):
        read_run(run)


@pytest.mark.parametrize("part", ["run.json", "safetensors"])
def test_a_run_that_may_not_be_read(run: Path, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path, mode: str) -> Any:  # file modes would not stop root
        if path.name.endswith(part):
            raise PermissionError(13, "Permission denied")
        return open(path, mode)

    monkeypatch.setattr(run_folder_1, "open", deny, raising=False)
    with pytest.raises(RunError, match=rf"{part} cannot be read \(Permission denied\): "):
        read_run(run)


def test_a_run_that_is_replaced_while_it_is_read(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has read the old run.json; a writer of today finishes, and the old arrays are gone."""
    read_header, calls = run_folder_1._header, []

    def overtaken(folder: Path) -> Any:
        header = read_header(folder)
        if not calls:
            calls.append(folder)
            write_run(folder, {"x": torch.full((2,), 9.0)}, {"step": 9})
        return header

    monkeypatch.setattr(run_folder_1, "_header", overtaken)
    arrays, record = read_run(run)
    assert record == {"step": 9}
    assert arrays["x"].tolist() == [9.0, 9.0]
