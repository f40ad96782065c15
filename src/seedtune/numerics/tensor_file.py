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
from typing import IO, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from seedtune.config.foreign_data import conform, parse_json
from seedtune.errors import StorageError
from seedtune.numerics.rounding import ARRAYS, dtype_of

Array = NDArray[Any]


class Kind(NamedTuple):
    """Element type and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


Kinds = Mapping[str, Kind]
"""Kinds of tensors by name."""

CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_TYPES = {code: dtype for dtype, code in CODES.items()}
_ALIGNMENT = 64
"""Bytes to which the data are aligned, for vector loads from a mapped file."""

_HEADER_LIMIT = 25 << 20
"""Most bytes of a header: a hundred for each of a quarter of a million tensors."""

Size = Annotated[int, Field(ge=0, lt=2**48)]


class Stored(NamedTuple):
    """The location of a tensor of weights in a safetensors file; ``offset`` in bytes."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int


def write(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write arrays of weights as a safetensors file; OSError if writing fails."""
    head, _ = _head({name: Kind(dtype_of(array), array.shape) for name, array in tensors.items()})
    with path.open("wb") as file:
        file.write(head)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def reserve(path: Path, kinds: Kinds) -> dict[str, Stored]:
    """Create a safetensors file of zeros with room for these tensors, to be filled in place (`window`)."""
    head, size = _head(kinds)
    with path.open("wb") as file:
        file.write(head)
        _take_space(file, len(head) + size)
    return contents(path)


def _take_space(file: IO[bytes], size: int) -> None:
    """Reserve the disk space of a file now: a mapped page without space later would end the process with SIGBUS."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    file.seek(0, os.SEEK_END)  # macOS: written zeros take it
    while (missing := size - file.tell()) > 0:
        file.write(bytes(min(missing, 1 << 24)))
    file.flush()


def _head(kinds: Kinds) -> tuple[bytes, int]:
    """Return the header of a file of these tensors, and the number of bytes that follow it."""
    entries, end = dict[str, Any](), 0
    for name, (dtype, shape) in kinds.items():
        start, end = end, end + math.prod(shape) * np.dtype(ARRAYS[dtype]).itemsize
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    return len(header).to_bytes(8, "little") + header, end


class _Entry(TypedDict):
    """A tensor in the header."""

    dtype: str
    shape: Annotated[list[Size], Field(max_length=32)]
    data_offsets: Annotated[list[Size], Field(min_length=2, max_length=2)]


def contents(path: Path, fix: str = "Get the file again.") -> dict[str, Stored]:
    """Return the tensors of weights in a safetensors file by name; StorageError with the ``fix`` if it is broken."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            size = int.from_bytes(data[:8], "little")
            if size > min(_HEADER_LIMIT, len(data) - 8):
                raise ValueError(f"a header of {size} bytes does not fit into a file of {len(data)}")
            header, start = conform(parse_json(data[8 : 8 + size]), dict[str, Any]), 8 + size
            header.pop("__metadata__", None)
            entries = conform(header, dict[str, _Entry])
            if max((e["data_offsets"][1] for e in entries.values()), default=0) > len(data) - start:
                raise ValueError(f"it is cut off after {len(data) - start} bytes of data")
        found = {
            name: (Stored(path, _TYPES[e["dtype"]], tuple(e["shape"]), start + e["data_offsets"][0]), e["data_offsets"])
            for name, e in entries.items()
            if e["dtype"] in _TYPES
        }
        for name, (stored, (begin, end)) in found.items():
            if end - begin != math.prod(stored.shape) * np.dtype(ARRAYS[stored.dtype]).itemsize:
                raise ValueError(f"{name[:100]!r} has {end - begin} bytes, which are not those of its shape")
        return {name: stored for name, (stored, _) in found.items()}
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {path}: {error}. {fix}") from error


def expect(path: Path, kinds: Kinds) -> dict[str, Stored]:
    """Return the locations of exactly these tensors in a snapshot; StorageError if it is broken or of another model."""
    fix = "Delete the snapshot and resume again."
    stored = contents(path, fix)
    found = {name: Kind(entry.dtype, entry.shape) for name, entry in stored.items()}
    for name in sorted(kinds.keys() | found.keys()):
        if kinds.get(name) != found.get(name):
            other = f"({name!r}: {found.get(name)} there, not {kinds.get(name)})"
            raise StorageError(f"cannot read {path}: it does not hold this model's tensors {other}. {fix}")
    return stored


def window(stored: Stored, mode: Literal["r", "r+"] = "r") -> Array:
    """Map a tensor's part of the file, to be read or ("r+") written; StorageError if that fails."""
    try:
        return np.asarray(np.memmap(stored.path, ARRAYS[stored.dtype], mode, stored.offset, stored.shape))
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot map {stored.path}: {error}. Get the file again.") from error


def read(stored: Stored) -> Array:
    """Read a tensor into its own memory; StorageError if the file does not hold all of it."""
    try:
        array = np.fromfile(stored.path, ARRAYS[stored.dtype], math.prod(stored.shape), offset=stored.offset)
        return array.reshape(stored.shape)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read {stored.path}: {error}. Get the file again.") from error


def mapped(folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "float32") -> dict[str, Array]:
    """Create arrays of these shapes in an unnamed memory-mapped file in ``folder``, deleted when the process ends.

    The values are 0.  The file takes its whole size at once; StorageError if the disk has no room for it.
    """
    kind, counts = np.dtype(ARRAYS[dtype]), [math.prod(shape) for shape in shapes.values()]
    total = sum(counts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            _take_space(file, max(1, total) * kind.itemsize)
            whole = np.asarray(np.memmap(file, kind, "r+", shape=(max(1, total),)))
    except OSError as error:
        raise StorageError(f"cannot map a file in {folder}: {error}. Choose a folder on a disk with room.") from error
    parts = np.split(whole, np.cumsum(counts))  # the last one is what is left over
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=False)}
