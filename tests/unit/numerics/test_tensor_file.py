"""Tensor files: any safetensors reader reads what we write, we read it back in place, and refuse anything else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seedtune.errors import StorageError
from seedtune.numerics import tensor_file
from seedtune.numerics.rounding import dtype_of

TENSORS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.weight": np.array([0x3F80, 0xC000, 0x7FC0], np.uint16),
    "c": np.array(2.5, np.float16),
    "empty": np.empty((0, 4), np.float32),
}


def kinds_of(tensors: dict[str, np.ndarray]) -> tensor_file.Kinds:
    return {name: (dtype_of(array), array.shape) for name, array in tensors.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tensor_file.write(tmp_path / "t.safetensors", TENSORS)
    return tmp_path / "t.safetensors"


def test_other_readers_see_names_types_shapes_and_values(path: Path) -> None:
    found = load_file(path)
    assert {n: (t.dtype, tuple(t.shape)) for n, t in found.items()} == {
        "a": (torch.float32, (2, 3)),
        "b.weight": (torch.bfloat16, (3,)),
        "c": (torch.float16, ()),
        "empty": (torch.float32, (0, 4)),
    }
    assert found["b.weight"][:2].tolist() == [1.0, -2.0]
    np.testing.assert_array_equal(found["a"].numpy(), TENSORS["a"])


def test_tensors_are_read_where_they_lie(path: Path) -> None:
    found = tensor_file.expect(path, kinds_of(TENSORS))
    for name, array in TENSORS.items():
        assert tensor_file.window(found[name]).tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "other",
    [
        {**TENSORS, "a": np.zeros((3, 2), np.float32)},
        {**TENSORS, "c": np.zeros((), np.float32)},
        {n: a for n, a in TENSORS.items() if n != "a"},
        {**TENSORS, "more": np.zeros(1, np.float32)},
    ],
    ids=["shape", "type", "missing", "more"],
)
def test_a_file_of_another_model_is_refused(path: Path, other: dict[str, np.ndarray]) -> None:
    with pytest.raises(StorageError, match="does not hold this model's tensors"):
        tensor_file.expect(path, kinds_of(other))


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_cut_file_is_refused(path: Path, cut: int) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(StorageError, match="cannot read"):
        tensor_file.expect(path, kinds_of(TENSORS))


def test_mapped_arrays_are_writable_and_leave_no_file(tmp_path: Path) -> None:
    arrays = tensor_file.mapped(tmp_path / "new", {"a": (3, 4), "b": (), "c": (0,)})
    arrays["a"][...] = 7.0
    arrays["b"][...] = 1.0
    assert arrays["a"].sum() == 84.0
    assert {name: array.shape for name, array in arrays.items()} == {"a": (3, 4), "b": (), "c": (0,)}
    assert list((tmp_path / "new").iterdir()) == []


def test_where_no_call_reserves_space_written_zeros_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS; a hole in the file would have no blocks."""
    monkeypatch.delattr(os, "posix_fallocate")
    kinds = {"a": tensor_file.Kind("float32", (1000, 1000))}
    tensor_file.reserve(tmp_path / "file", kinds)
    found = (tmp_path / "file").stat()
    assert found.st_size > 4_000_000
    assert found.st_blocks * 512 >= found.st_size
    assert not tensor_file.mapped(tmp_path, {"a": (3, 4)})["a"].any()


def test_mapped_arrays_share_one_open_file(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    arrays = tensor_file.mapped(tmp_path, {f"layer.{number}": (2,) for number in range(50)})
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    arrays["layer.0"][...] = 1.0
    assert sum(array.sum() for array in arrays.values()) == 2.0


def test_a_tensor_that_is_cut_off_after_it_was_found_is_an_error(tmp_path: Path) -> None:
    tensor_file.write(tmp_path / "x.safetensors", {"a": np.ones(1000, np.float32)})
    (stored,) = tensor_file.contents(tmp_path / "x.safetensors").values()
    assert tensor_file.read(stored).sum() == 1000.0
    os.truncate(tmp_path / "x.safetensors", 200)
    with pytest.raises(StorageError, match=r"cannot read .*x\.safetensors"):
        tensor_file.read(stored)


def test_a_mapped_file_that_finds_no_room_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Choose a folder on a disk with room"):
        tensor_file.mapped(tmp_path, {"a": (1 << 50,)})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_reserved_file_is_filled_in_place_and_read_as_if_it_had_been_written(tmp_path, dtype):
    kinds = {"a": (dtype, (3, 4)), "b": (dtype, (5,))}
    places = tensor_file.reserve(tmp_path / "x.safetensors", kinds)
    assert all(not tensor_file.window(stored).any() for stored in places.values())
    for number, stored in enumerate(places.values()):
        tensor_file.window(stored, "r+")[1:] = number + 1
    found = tensor_file.expect(tmp_path / "x.safetensors", kinds)
    arrays = {name: np.array(tensor_file.window(stored)) for name, stored in found.items()}
    tensor_file.write(tmp_path / "y.safetensors", arrays)
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()
    assert (tensor_file.window(found["a"])[1:] == 1).all()
    assert not tensor_file.window(found["a"]).flags.writeable


def test_a_file_of_another_model_is_not_what_was_expected(tmp_path):
    tensor_file.reserve(tmp_path / "x.safetensors", {"a": ("float32", (3, 4))})
    for kinds in ({"a": ("float32", (4, 3))}, {"b": ("float32", (3, 4))}, {"a": ("bfloat16", (3, 4))}):
        with pytest.raises(StorageError, match="Delete the snapshot"):
            tensor_file.expect(tmp_path / "x.safetensors", kinds)
