"""Tensors in files: safetensors written and read in place, tensor by tensor, and memory-mapped arrays.

The library's numpy interface has no bfloat16 and builds the whole file in memory; here a file costs no more memory
than one tensor.  bfloat16 arrays are their uint16 bits and are stored as ``BF16``, which any reader understands.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seedtune.errors import StorageError
from seedtune.numerics.rounding import ARRAYS, dtype_of

Array = NDArray[Any]

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_ALIGNMENT = 8
_HEADER_LIMIT = 100 << 20


def write(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write C-contiguous arrays of weights as a safetensors file; OSError if writing fails."""
    head, _ = _head({name: (dtype_of(array), array.shape) for name, array in tensors.items()})
    with path.open("wb") as file:
        file.write(head)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def read_into(path: Path, tensors: Mapping[str, Array]) -> None:
    """Fill ``tensors`` from a safetensors file with the same names, shapes and types.

    Raises StorageError if the file is broken or of another model; some tensors may be filled already.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries, start = _header(data)
            _check(entries, tensors, len(data) - start)
            for name, array in tensors.items():
                first = start + entries[name]["data_offsets"][0]
                array.reshape(-1)[...] = np.frombuffer(data, array.dtype, array.size, first)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"cannot read {path}: {error}. Delete the snapshot and resume again.") from error


class Stored(NamedTuple):
    """The location of a tensor of weights in a safetensors file; ``offset`` in bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def contents(path: Path) -> dict[str, Stored]:
    """Return the tensors of weights in a safetensors file by name; StorageError if it is broken."""
    kinds = {code: dtype for dtype, code in CODES.items()}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries, start = _header(data)
        return {
            name: Stored(path, kinds[e["dtype"]], tuple(e["shape"]), start + e["data_offsets"][0])
            for name, e in entries.items()
            if e["dtype"] in kinds
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"cannot read {path}: {error}. Get the file again.") from error


def reserve(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Stored]:
    """Create a safetensors file of zeros with room for these tensors, to be filled in place (`window`)."""
    head, size = _head({name: (dtype, shape) for name, shape in shapes.items()})
    with path.open("wb") as file:
        file.write(head)
        # Reserve the space now: a mapped page without space later would end the process with SIGBUS.
        os.posix_fallocate(file.fileno(), len(head), max(1, size))
        file.truncate(len(head) + size)
    return contents(path)


def expect(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, Stored]:
    """Return the locations of exactly these tensors in a file; StorageError if it is broken or of another model."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            entries, start = _header(data)
            nothing = np.zeros(1, ARRAYS[dtype])
            _check(entries, {n: np.broadcast_to(nothing, shape) for n, shape in shapes.items()}, len(data) - start)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(f"cannot read {path}: {error}. Delete the snapshot and resume again.") from error
    return contents(path)


def window(stored: Stored, mode: Literal["r", "r+"] = "r") -> Array:
    """Map a tensor's part of the file, to be read or ("r+") written; StorageError if that fails."""
    try:
        return np.asarray(np.memmap(stored.path, ARRAYS[stored.dtype], mode, stored.offset, stored.shape))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot map {stored.path}: {error}. Get the file again.") from error


def read(stored: Stored) -> Array:
    """Read a tensor into its own memory; StorageError if the file does not hold all of it."""
    try:
        count = math.prod(stored.shape)
        array = np.fromfile(stored.path, ARRAYS[stored.dtype], count, offset=stored.offset)
        return array.reshape(stored.shape)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {stored.path}: {error}. Get the file again.") from error


def _head(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, int]:
    """Return the header of a file of tensors, given their element types and shapes, and the bytes that follow it."""
    entries, place = dict[str, Any](), 0
    for name, (dtype, shape) in tensors.items():
        stop = place + math.prod(shape) * np.dtype(ARRAYS[dtype]).itemsize
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [place, stop]}
        place = stop
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header, place


def _header(data: mmap.mmap) -> tuple[dict[str, Any], int]:
    size = int.from_bytes(data[:8], "little")
    if size > min(_HEADER_LIMIT, len(data) - 8):
        raise ValueError(f"a header of {size} bytes does not fit into a file of {len(data)}")
    entries = json.loads(data[8 : 8 + size])
    entries.pop("__metadata__", None)
    return entries, 8 + size


def _check(entries: Mapping[str, Any], tensors: Mapping[str, Array], size: int) -> None:
    """Raise ValueError unless the file holds exactly these tensors, whole."""
    expected = {name: (CODES[dtype_of(a)], list(a.shape), a.nbytes) for name, a in tensors.items()}
    found = {name: (e["dtype"], e["shape"], e["data_offsets"][1] - e["data_offsets"][0]) for name, e in entries.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"it does not hold this model's tensors ({name!r}: {found.get(name)} there, not {expected.get(name)})"
            )
    if max((e["data_offsets"][1] for e in entries.values()), default=0) > size:
        raise ValueError(f"it is cut off after {size} bytes of data")


def mapped(folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32") -> dict[str, Array]:
    """Create arrays of these shapes in an unnamed memory-mapped file in ``folder``, deleted when the process ends.

    The values are 0.  The file takes its whole size at once; StorageError if the disk has no room for it.
    """
    kind = np.dtype(ARRAYS[dtype])
    total = sum(math.prod(shape) for shape in shapes.values())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Reserve the space now: a page without space later would end the process with SIGBUS.
            os.posix_fallocate(file.fileno(), 0, max(1, total) * kind.itemsize)
            whole = np.memmap(file, kind, "r+", shape=(max(1, total),))
    except OSError as error:
        raise StorageError(f"cannot map a file in {folder}: {error}. Choose a folder on a disk with room.") from error
    arrays, place = {}, 0
    for name, shape in shapes.items():
        count = math.prod(shape)
        arrays[name] = np.ndarray(shape, kind, whole, place * kind.itemsize)
        place += count
    return arrays
