"""Run folders: the arrays of a fit and a record about it, on disk. Knows no model.

A run is two files in a folder that may hold anything else besides (figures, tables)::

    arrays-<first 12 hex digits of its sha256>.safetensors     the tensors
    run.json                                                   what they are, and the record

Both formats are data only: reading a folder runs nothing. ``run.json`` is strict JSON; as JSON has no infinities, a
float that is not finite is written as ``{"$float": "nan"}``, ``"inf"`` or ``"-inf"``, and comes back a float.
Tuples come back as lists.

The arrays are written first, under the name of their content; ``run.json``, which names them, replaces the old one
last. So whenever the writer is killed, the folder holds the old run or the new one, never a mix. One writer per folder
at a time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from .errors import RunError

FORMAT = 1
RUN_FILE = "run.json"

_KIND = "latentzoo run"  # tells our run.json from that of another program
_KEYS = {"kind", "format", "versions", "arrays", "record"}
_ARRAYS_KEYS = ("file", "sha256", "bytes", "tensors")
_ARRAYS_NAME = re.compile(r"arrays-[0-9a-f]{12}\.safetensors")
_TEMPORARY_NAME = re.compile(r"\.run-[0-9a-f]{16}\.tmp")
_MAX_RECORD_BYTES = 64 * 2**20  # more than this is an array in disguise, or not ours
_MAX_DEPTH = 64
_NO_RUN = "expected the folder of a saved run: check the path"
_SAVE_AGAIN = "save the fit again, or restore the folder from a copy"


def write_run(
    folder: str | os.PathLike[str],
    arrays: Mapping[str, torch.Tensor],
    record: Mapping[str, Any],
    *,
    version: str | None = None,
) -> Path:
    """Write one run, in place of the one that the folder held.

    Parameters
    ----------
    folder : path
        Made if it is missing, parents included. Files in it that are not of a run stay untouched.
    arrays : mapping of str to torch.Tensor
        Dense tensors of any shape (0-d and empty ones too), dtype and device. They come back bit for bit, on the CPU,
        each with memory of its own and without gradients.
    record : mapping
        What else is to be kept: None, bool, int, float, str, and lists, tuples and string-keyed mappings of these.
        NumPy scalars become plain numbers.
    version : str, optional
        The version of latentzoo that writes, for the reader's information.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    RunError
        For a tensor or a part of the record that the format cannot hold, or a folder that is a file.
    OSError
        When the disk refuses (full, read-only). The previous run is still whole.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; a run needs a folder: give another path")
    tensors = {name: _dense(folder, name, tensor) for name, tensor in arrays.items()}
    payload = safetensors.torch.save(tensors)
    sha256 = hashlib.sha256(payload).hexdigest()
    header = {
        "kind": _KIND,
        "format": FORMAT,
        "versions": {"latentzoo": version, "torch": str(torch.__version__), "pyro": _pyro_version()},
        "arrays": {
            "file": _arrays_name(sha256),
            "sha256": sha256,
            "bytes": len(payload),
            "tensors": {name: _describe(tensor) for name, tensor in tensors.items()},
        },
        "record": _encode(folder, "record", dict(record), 0),
    }
    text = json.dumps(header, allow_nan=False, indent=1).encode("ascii")
    if len(text) > _MAX_RECORD_BYTES:
        raise RunError(f"{folder}: the record takes {len(text)} bytes, at most {_MAX_RECORD_BYTES} fit: use arrays")

    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / _arrays_name(sha256), payload)
    _replace(folder / RUN_FILE, text)
    for path in folder.iterdir():
        stale = _ARRAYS_NAME.fullmatch(path.name) and path.name != _arrays_name(sha256)
        if stale or _TEMPORARY_NAME.fullmatch(path.name):  # a temporary file is what a killed writer left
            path.unlink(missing_ok=True)
    return folder


def read_run(folder: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the run that a folder holds, after checking it against its own description. Runs nothing, unpickles nothing.

    Parameters
    ----------
    folder : path

    Returns
    -------
    arrays : dict of str to torch.Tensor
        The tensors, on the CPU.
    record : dict
        The record. Tuples have become lists.

    Raises
    ------
    RunError
        If the folder is missing, holds no run, or holds one that is cut short, altered, foreign or of a newer format.
    """
    folder = Path(folder)
    text = _read_header(folder)
    while True:
        try:
            return _parse(folder, text)
        except RunError:
            # A writer at work may have replaced the run and removed the old arrays since run.json was read: look again.
            latest = _read_header(folder)
            if latest == text:
                raise
            text = latest


def _arrays_name(sha256: str) -> str:
    return f"arrays-{sha256[:12]}.safetensors"


def _pyro_version() -> str | None:
    try:
        return importlib.metadata.version("pyro-ppl")
    except importlib.metadata.PackageNotFoundError:
        return None


def _describe(tensor: torch.Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _dense(folder: Path, name: object, tensor: object) -> torch.Tensor:
    """A contiguous copy on the CPU: views and expanded tensors share memory, which safetensors refuses."""
    if not isinstance(name, str) or name == "__metadata__":
        raise RunError(f"{folder}: an array is named {name!r}; expected a string, not '__metadata__': rename it")
    if not isinstance(tensor, torch.Tensor):
        raise RunError(f"{folder}: array {name!r} is a {type(tensor).__name__}; expected a torch.Tensor: convert it")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantized" if tensor.is_quantized else str(tensor.layout)
        raise RunError(f"{folder}: array {name!r} is a {kind} tensor; expected a dense one: convert it")
    copy = tensor.detach().resolve_conj().resolve_neg().cpu().clone(memory_format=torch.contiguous_format)
    try:
        safetensors.torch.load(safetensors.torch.save({name: copy.new_zeros(())}))  # some types can be written only
    except (KeyError, ValueError, SafetensorError) as error:
        raise RunError(f"{folder}: array {name!r} is {copy.dtype}, which safetensors lacks: convert it") from error
    return copy


def _encode(folder: Path, where: str, value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise RunError(f"{folder}: {where[:80]}... is nested deeper than {_MAX_DEPTH} levels: flatten it")
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)  # an IntEnum too: the number is what is kept
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, (list, tuple)):
        return [_encode(folder, f"{where}[{i}]", item, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == "$float":
                raise RunError(f"{folder}: {where} has the key {key!r}; expected a string, not '$float': rename it")
        return {key: _encode(folder, f"{where}[{key!r}]", item, depth + 1) for key, item in value.items()}
    raise RunError(
        f"{folder}: {where} is a {type(value).__name__}; JSON holds None, bool, int, float, str, lists and mappings: "
        "put tensors into arrays, and write the rest as one of these"
    )


def _decode(pairs: list[tuple[str, Any]]) -> Any:
    if len(pairs) == 1 and pairs[0][0] == "$float" and pairs[0][1] in ("nan", "inf", "-inf"):
        return float(pairs[0][1])
    return dict(pairs)


def _replace(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, or a crash, finds the old file or the new one."""
    temporary = path.parent / f".run-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is on disk only when the folder is; other systems cannot open a folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read_file(folder: Path, name: str, max_bytes: int) -> bytes:
    try:
        with open(folder / name, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise RunError(f"{folder}: {name} cannot be read ({error.strerror}): {_SAVE_AGAIN}") from error
    if len(content) > max_bytes:
        raise RunError(f"{folder}: {name} has more than the expected {max_bytes} bytes: {_SAVE_AGAIN}")
    return content


def _read_header(folder: Path) -> bytes:
    if not folder.is_dir():
        met = "is a file" if folder.exists() else "does not exist"
        raise RunError(f"{folder}: {met}; {_NO_RUN}")
    if not (folder / RUN_FILE).is_file():
        raise RunError(f"{folder}: has no {RUN_FILE}; {_NO_RUN}")
    return _read_file(folder, RUN_FILE, _MAX_RECORD_BYTES)


def _refuse_constant(token: str) -> None:
    raise ValueError(f"{token} is not JSON")


def _parse(folder: Path, text: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_decode, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise RunError(f"{folder}: {RUN_FILE} is cut short or is not JSON ({reason}): {_SAVE_AGAIN}") from error
    if not isinstance(header, dict) or header.get("kind") != _KIND or type(header.get("format")) is not int:
        raise RunError(f"{folder}: {RUN_FILE} is not from latentzoo; {_NO_RUN}")
    if header["format"] > FORMAT:
        raise RunError(f"{folder}: written by format {header['format']}, this reads up to {FORMAT}: upgrade latentzoo")
    if header["format"] < 1 or header.keys() != _KEYS or not isinstance(header["record"], dict):
        raise RunError(f"{folder}: {RUN_FILE} lacks the fields of format {FORMAT}, {sorted(_KEYS)}: {_SAVE_AGAIN}")
    return _read_arrays(folder, header["arrays"]), header["record"]


def _read_arrays(folder: Path, described: Any) -> dict[str, torch.Tensor]:
    """The tensors, once the file's name, size and hash, then each name, shape and dtype, have met the description."""
    if not isinstance(described, dict) or described.keys() != set(_ARRAYS_KEYS):
        raise RunError(f"{folder}: {RUN_FILE} does not describe its arrays by {_ARRAYS_KEYS}: {_SAVE_AGAIN}")
    name, sha256, size, tensors = (described[key] for key in _ARRAYS_KEYS)
    # The name follows from the hash, so no name in run.json can lead out of the folder.
    if not isinstance(name, str) or not _ARRAYS_NAME.fullmatch(name) or name != _arrays_name(str(sha256)):
        raise RunError(f"{folder}: {RUN_FILE} names its arrays {name!r}, not arrays-<hash>.safetensors: {_SAVE_AGAIN}")
    if not (folder / name).is_file():
        raise RunError(f"{folder}: {name} is missing, and {RUN_FILE} needs it: {_SAVE_AGAIN}")
    if type(size) is not int or size < 0 or not isinstance(tensors, dict):
        raise RunError(f"{folder}: {RUN_FILE} gives no size, or no shapes, for {name}: {_SAVE_AGAIN}")
    payload = _read_file(folder, name, size)
    if len(payload) < size:
        raise RunError(f"{folder}: {name} has {len(payload)} of the {size} bytes that were written: {_SAVE_AGAIN}")
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise RunError(f"{folder}: {name} is not what was written, its sha256 differs: {_SAVE_AGAIN}")
    try:
        arrays = safetensors.torch.load(payload)
    except (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise RunError(f"{folder}: {name} is not a safetensors file ({error}): {_SAVE_AGAIN}") from error
    for key in sorted(arrays.keys() | tensors.keys()):
        held = _describe(arrays[key]) if key in arrays else None
        if held != tensors.get(key):
            raise RunError(f"{folder}: array {key!r} is {held}; {RUN_FILE} says {tensors.get(key)}: {_SAVE_AGAIN}")
    return {key: arrays[key] for key in tensors}
