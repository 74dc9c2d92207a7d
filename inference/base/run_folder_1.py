"""Run folders of format 1, which are read still: ``run.json``, with the record and what the arrays are, and
``arrays-<first 12 hex digits of its sha256>.safetensors``, the arrays.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from .errors import RunError
from .run_files import NO_RUN, OLD_FILE
from .strict_json import decoded

_KIND = "latentzoo run"  # tells our run.json from that of another program
_KEYS = {"kind", "format", "versions", "arrays", "record"}
_ARRAYS_KEYS = ("file", "sha256", "bytes", "tensors")
_ARRAYS_NAME = re.compile(r"arrays-[0-9a-f]{12}\.safetensors")
_MAX_RECORD_BYTES = 64 * 2**20
_SAVE_AGAIN = "save the fit again, or restore the folder from a copy"


def read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Arrays and record, once the files have met the description."""
    header = _header(folder)
    if header["format"] != 1 or header.keys() != _KEYS or not isinstance(header["record"], dict):
        raise RunError(f"{folder}: {OLD_FILE} lacks the fields of format 1, {sorted(_KEYS)}: {_SAVE_AGAIN}")
    return _read_arrays(folder, header["arrays"]), header["record"]


def remove(folder: Path) -> None:
    """Take away the files of format 1, after a run of today was written."""
    try:
        _header(folder)
    except RunError:  # there is none, or it is not ours
        return
    for path in folder.iterdir():
        if _ARRAYS_NAME.fullmatch(path.name) or path.name == OLD_FILE:
            path.unlink(missing_ok=True)


def _header(folder: Path) -> dict[str, Any]:
    try:
        header = decoded(_read_file(folder, OLD_FILE, _MAX_RECORD_BYTES))
    except ValueError as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{folder}: {OLD_FILE} is cut short or is not JSON ({error}): {_SAVE_AGAIN}") from error
    if not isinstance(header, dict) or header.get("kind") != _KIND or type(header.get("format")) is not int:
        raise RunError(f"{folder}: {OLD_FILE} is not from latentzoo; {NO_RUN}")
    return header


def _read_file(folder: Path, name: str, max_bytes: int) -> bytes:
    try:
        with open(folder / name, "rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise RunError(f"{folder}: {name} cannot be read ({error.strerror}): {_SAVE_AGAIN}") from error
    if len(content) > max_bytes:
        raise RunError(f"{folder}: {name} has more than the expected {max_bytes} bytes: {_SAVE_AGAIN}")
    return content


def _read_arrays(folder: Path, described: Any) -> dict[str, torch.Tensor]:
    """The tensors, once the file's name, size and hash, then each name, shape and dtype, have met the description."""
    if not isinstance(described, dict) or described.keys() != set(_ARRAYS_KEYS):
        raise RunError(f"{folder}: {OLD_FILE} does not describe its arrays by {_ARRAYS_KEYS}: {_SAVE_AGAIN}")
    name, sha256, size, tensors = (described[key] for key in _ARRAYS_KEYS)
    # The name follows from the hash, so no name in run.json can lead out of the folder.
    if (
        not isinstance(name, str)
        or not _ARRAYS_NAME.fullmatch(name)
        or name != f"arrays-{str(sha256)[:12]}.safetensors"
    ):
        raise RunError(f"{folder}: {OLD_FILE} names its arrays {name!r}, not arrays-<hash>.safetensors: {_SAVE_AGAIN}")
    if not (folder / name).is_file():
        raise RunError(f"{folder}: {name} is missing, and {OLD_FILE} needs it: {_SAVE_AGAIN}")
    if type(size) is not int or size < 0 or not isinstance(tensors, dict):
        raise RunError(f"{folder}: {OLD_FILE} gives no size, or no shapes, for {name}: {_SAVE_AGAIN}")
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
            raise RunError(f"{folder}: array {key!r} is {held}; {OLD_FILE} says {tensors.get(key)}: {_SAVE_AGAIN}")
    return {key: arrays[key] for key in tensors}


def _describe(tensor: torch.Tensor) -> dict[str, Any]:
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
