"""Run folders: the arrays of a fit and a record about it, on disk. Knows no model.

A run is one file, ``run.safetensors``, in a folder that may hold anything else besides (figures, tables). The record is
the metadata of the arrays, as strict JSON; with it stands the sha256 of all bytes of the file, those of the digest
itself read as zeros. Data only: reading runs nothing.

The file is written under a name of its own, synced, and put in the place of the old one in one step. So whenever a
writer is killed, however many write and whoever reads, the folder holds one run, whole: that of who came last.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError

from . import run_folder_1
from .errors import RunError
from .records import read_as
from .run_files import NO_RUN, RUN_FILE, require_run
from .strict_json import decoded, encoded

if sys.platform != "win32":
    import fcntl

FORMAT = 2

_KIND = "latentzoo run"  # the key of our metadata, which tells our file from that of another program
_UNSIGNED = "0" * 64
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEMPORARY_NAME = re.compile(r"\.run-[0-9a-f]{16}\.tmp")
_MAX_RECORD_BYTES = 64 * 2**20  # more than this is an array in disguise, or not ours
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_SAVE_AGAIN = "save the fit again, or restore the folder from a copy"


@dataclass(frozen=True)
class Told:
    """What the metadata say. The digest comes first: it is looked for from the start of the file."""

    sha256: str
    format: int
    versions: dict[str, str | None]
    arrays: list[str]
    record: dict[str, Any]


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
        For a tensor or a part of the record that the format cannot hold, or a folder that is a file, or that holds a
        file of that name which another program wrote.
    OSError
        When the disk refuses (full, read-only). The previous run is still whole.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file; a run needs a folder: give another path")
    tensors = {name: _dense(folder, name, tensor) for name, tensor in arrays.items()}
    versions = {"latentzoo": version, "torch": str(torch.__version__), "pyro": _pyro_version()}
    told = Told(_UNSIGNED, FORMAT, versions, list(tensors), encoded(dict(record), f"{folder}: record"))
    text = json.dumps(vars(told), allow_nan=False)
    if len(text) > _MAX_RECORD_BYTES:
        raise RunError(f"{folder}: the record takes {len(text)} bytes, at most {_MAX_RECORD_BYTES} fit: use arrays")
    payload = safetensors.torch.save(tensors, {_KIND: text})
    place = payload.index(_UNSIGNED.encode())
    digest, view = _digest(payload, place).encode(), memoryview(payload)

    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder) as locked:
        _refuse_foreign(folder)
        _replace(folder / RUN_FILE, view[:place], digest, view[place + len(digest) :])
        run_folder_1.remove(folder)
        if locked:  # what a killed writer left: nobody else is writing
            for path in folder.iterdir():
                if _TEMPORARY_NAME.fullmatch(path.name):
                    path.unlink(missing_ok=True)
    return folder


def read_run(folder: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the run that a folder holds, after checking all of its bytes. Runs nothing, unpickles nothing.

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
    require_run(folder)
    if not (folder / RUN_FILE).is_file():
        try:
            return run_folder_1.read(folder)
        except RunError:
            if not (folder / RUN_FILE).is_file():  # else a writer has just put a run of today in its place
                raise
    try:
        return _read(folder)
    except OSError as error:
        raise RunError(f"{folder}: {RUN_FILE} cannot be read ({error.strerror}): {_SAVE_AGAIN}") from error


def _read(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Arrays and record, once the file has the size that its header says, and its digest is that of its bytes."""
    with open(folder / RUN_FILE, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        length, header = _header(folder, file, size)
        told = _told(folder, header)
        needed = 8 + length + _bytes_of_arrays(folder, header)
        if size != needed:
            raise RunError(f"{folder}: {RUN_FILE} has {size} bytes, {needed} were written: {_SAVE_AGAIN}")
        file.seek(0)
        content = file.read(needed)
    if _digest(content, content.find(told.sha256.encode())) != told.sha256:
        raise RunError(f"{folder}: {RUN_FILE} is not what was written, its sha256 differs: {_SAVE_AGAIN}")
    try:
        arrays = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise RunError(f"{folder}: {RUN_FILE} holds no arrays ({error}): {_SAVE_AGAIN}") from error
    if sorted(arrays) != sorted(told.arrays):
        raise RunError(f"{folder}: {RUN_FILE} names other arrays than it holds: {_SAVE_AGAIN}")
    return {name: arrays[name] for name in told.arrays}, told.record


def _header(folder: Path, file: BinaryIO, size: int) -> tuple[int, dict[str, Any]]:
    """Length and content of the header of a safetensors file: where each array is, and the metadata."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
        raise RunError(f"{folder}: {RUN_FILE} is cut short, or is no safetensors file: {_SAVE_AGAIN}")
    try:
        header = decoded(file.read(length))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RunError(f"{folder}: the header of {RUN_FILE} is damaged ({error}): {_SAVE_AGAIN}") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise RunError(f"{folder}: {RUN_FILE} has no header of safetensors: {_SAVE_AGAIN}")
    return length, header


def _told(folder: Path, header: dict[str, Any]) -> Told:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata.get(_KIND), str):
        raise RunError(f"{folder}: {RUN_FILE} is not from latentzoo; {NO_RUN}")
    try:
        told = decoded(metadata[_KIND])
    except ValueError as error:
        raise RunError(f"{folder}: the record in {RUN_FILE} is damaged ({error}): {_SAVE_AGAIN}") from error
    form = told.get("format") if isinstance(told, dict) else None
    if type(form) is int and form > FORMAT:
        raise RunError(f"{folder}: written by format {form}, this reads up to {FORMAT}: upgrade latentzoo")
    found: Told = read_as(Told, told, f"{folder}: {RUN_FILE}")
    if form != FORMAT or len(metadata) > 1 or not _SHA256.fullmatch(found.sha256):
        raise RunError(f"{folder}: {RUN_FILE} is not of format {FORMAT}, or has no digest: {_SAVE_AGAIN}")
    return found


def _bytes_of_arrays(folder: Path, header: dict[str, Any]) -> int:
    ends = []
    for name, where in header.items():
        if name != "__metadata__":
            offsets = where.get("data_offsets") if isinstance(where, dict) else None
            if not isinstance(offsets, list) or [type(one) for one in offsets] != [int, int]:
                raise RunError(f"{folder}: {RUN_FILE} does not say where its array {name!r} is: {_SAVE_AGAIN}")
            ends.append(offsets[1])
    return max(ends, default=0)


def _digest(content: bytes, place: int) -> str:
    """sha256 of a file whose own digest stands at a place, which is read as zeros."""
    view = memoryview(content)
    found = hashlib.sha256(view[: max(place, 0)])
    found.update(_UNSIGNED.encode())
    found.update(view[place + len(_UNSIGNED) :])
    return found.hexdigest()


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


def _pyro_version() -> str | None:
    try:
        return importlib.metadata.version("pyro-ppl")
    except importlib.metadata.PackageNotFoundError:
        return None


def _refuse_foreign(folder: Path) -> None:
    """A file that another program wrote under our name is not replaced; one of ours may be, however damaged."""
    path = folder / RUN_FILE
    try:
        with open(path, "rb") as file:
            _, header = _header(folder, file, os.fstat(file.fileno()).st_size)
    except (OSError, RunError):
        return
    if _KIND not in header.get("__metadata__", {}):
        raise RunError(f"{folder}: holds a {RUN_FILE} that is not from latentzoo: give another folder")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """One writer at a time: who comes second waits for the lock on the folder. False where a disk has no locks."""
    if sys.platform == "win32":
        yield False
        return
    descriptor, locked = os.open(folder, os.O_RDONLY), True
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _replace(path: Path, *parts: bytes | memoryview) -> None:
    """Put a file at `path` so that a reader, or a crash, finds the old one or the new one."""
    temporary = path.parent / f".run-{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.writelines(parts)
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
