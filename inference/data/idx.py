"""IDX files, the format of MNIST: a magic number, the sizes of an array, and its numbers, all big-endian."""

from __future__ import annotations

import gzip
import itertools
import math
import re
import struct
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from ..base.errors import DataError

NAMES = re.compile(r"[.-]idx\d*(-[a-z]+)?(\.gz)?$", re.IGNORECASE)  # such as train-images-idx3-ubyte.gz
TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
PART = 1 << 20  # bytes unpacked at once
ZIPPED = b"\x1f\x8b"


def is_idx(path: object) -> bool:
    """Whether a path has the name of an IDX file."""
    return isinstance(path, str | Path) and NAMES.search(Path(path).name) is not None


def read_idx(path: str | Path) -> Any:
    """An IDX file, plain or packed by gzip, as a table with a row for each image or label.

    Parameters
    ----------
    path : str or Path
        Such as ``train-images-idx3-ubyte.gz``.

    Returns
    -------
    pandas.DataFrame
        Of images (N, rows, cols) the columns are ``pixel_0_0``, ``pixel_0_1``, ...; of labels (N,) there is one,
        ``label``; of vectors (N, D) they are ``value_0``, .... The numbers are as in the file: MNIST's ink is 0 to 255.

    Raises
    ------
    DataError
        There is no such file, it is no IDX file, or it is longer or shorter than its sizes say.
    """
    import pandas as pd

    array, columns = idx_array(path)
    return pd.DataFrame(array, columns=list(columns), copy=False)


def idx_array(path: str | Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The same as an array (N, D), a memory map unless the file is packed, with the names of its columns."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"data: no file {str(path)!r}")
    try:
        with file.open("rb") as start:
            packed = start.read(2) == ZIPPED
        with _opened(file, packed) as stream:
            kind, sizes, begin = _header(stream, str(path))
            expected = math.prod(sizes) * np.dtype(kind).itemsize
            if not packed:
                _check_length(file.stat().st_size - begin, expected, sizes, str(path))
                found: np.ndarray = np.memmap(file, kind, "r", begin, sizes)
            else:
                numbers = bytearray()  # in parts: sizes that are wrong would ask for more memory than there is
                while len(numbers) <= expected and (part := stream.read(min(PART, expected + 1 - len(numbers)))):
                    numbers += part
                _check_length(len(numbers), expected, sizes, str(path))
                found = np.frombuffer(numbers, kind).reshape(sizes)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"data: cannot read {str(path)!r}: {error}") from error
    return found.reshape(len(found), -1), _columns(sizes[1:])


def _opened(file: Path, packed: bool) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file)) if packed else file.open("rb")


def _header(stream: IO[bytes], path: str) -> tuple[str, tuple[int, ...], int]:
    """Type and sizes of the array, and where its numbers begin."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise DataError(f"data: {path!r} ends after {len(magic)} bytes, expected an IDX file, which begins with 4")
    if magic[:2] != b"\0\0" or magic[2] not in TYPES or magic[3] == 0:
        kinds = ", ".join(f"{code:02x}" for code in TYPES)
        raise DataError(
            f"data: {path!r} begins with {magic.hex(' ')}, expected the magic number of an IDX file: 00 00, one of "
            f"{kinds} for the type, the number of dims"
        )
    dims = magic[3]
    sizes = stream.read(4 * dims)
    if len(sizes) < 4 * dims:
        raise DataError(f"data: {path!r} ends among its sizes: met {len(sizes)} bytes of them, expected {4 * dims}")
    found = struct.unpack(f">{dims}I", sizes)
    if 0 in found:
        raise DataError(f"data: {path!r} holds an array of shape {found}, expected at least one row and one number")
    return TYPES[magic[2]], found, 4 + 4 * dims


def _check_length(met: int, expected: int, sizes: tuple[int, ...], path: str) -> None:
    if met != expected:
        shape = " x ".join(map(str, sizes))
        what = "is cut off" if met < expected else "goes on after its numbers"
        more = "more than that" if met > expected else f"{met}"
        raise DataError(f"data: {path!r} {what}: met {more}, expected {expected} bytes for {shape} numbers")


def _columns(sizes: tuple[int, ...]) -> tuple[str, ...]:
    if not sizes:
        return ("label",)
    name = "pixel" if len(sizes) > 1 else "value"
    return tuple("_".join(map(str, (name, *place))) for place in itertools.product(*map(range, sizes)))
