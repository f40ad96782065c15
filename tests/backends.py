"""The same operations by the numpy references, the numba kernels and the Triton kernels: numpy arrays in and out.

Arrays of bfloat16 are uint16, as everywhere in numpy. Triton's run on the GPU where there is one, else in its
interpreter (see conftest.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import references
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import noise, rounding
from seedtune.numerics.kernels import cpu, gpu
from seedtune.numerics.noise import Address
from seedtune.types import Update

Array = np.ndarray
Key = tuple[int, int]

Place = tuple[tuple[int, int], int, int]
"""(shape of the whole tensor, first row, first column) of a slice."""

PAIRS = (
    ("float32", "float32"),
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
)
"""Types of current and perturbed weights that go together."""


class Reference:
    """Plain numpy, a whole tensor at a time."""

    def normals(self, address: Address, start: int, count: int) -> Array:
        return noise.normals(address, start, count)

    def factors(
        self, key: Key, stream: int, who: Sequence[tuple[int, int]], *, start: int, count: int, **options: int
    ) -> Array:
        rank, subspaces = options.get("rank", 1), options.get("subspaces", 1)
        rows = np.empty((len(who), count), np.float32)
        for row, (generation, pair) in zip(rows, who, strict=True):
            address = Address(key, stream, generation, pair)
            row[:] = noise.normals(address, start, count)
            if subspaces > 1 and stream == noise.FACTOR_A:
                own = noise.in_subspace(address, start // rank, count // rank, subspaces=subspaces)
                row[np.repeat(~own, rank)] = 0
        return rows

    def signs(self, key: Key, stream: int, who: Sequence[tuple[int, int]], *, start: int, count: int) -> Array:
        rows = [noise.signs(Address(key, stream, *one), start, count) for one in who]
        return np.array(rows, np.float32).reshape(len(who), count)

    def updated_flipout(
        self,
        theta: Array,
        key: Key,
        updates: Sequence[Update],
        *,
        place: Place,
        anchor: Array | None = None,
        k: int = 1,
    ) -> Array:
        options = {"shared_noise": k, "anchor": anchor}
        return references.updated(theta, key, updates, shape=place[0], corner=place[1:], **options)

    def fingerprint(self, array: Array, key: Key, start: int) -> fp.Fingerprint:
        return references.mix_sum(fp.bits_of(array), key, start)

    def perturbed(self, theta: Array, dtype: str, sigma: float, address: Address, start: int, k: int = 1) -> Array:
        return references.perturbed(theta, sigma, address, start=start, dtype=dtype, subspaces=k)

    def updated_gaussian(
        self, theta: Array, key: Key, updates: Sequence[Update], start: int = 0, anchor: Array | None = None, k: int = 1
    ) -> Array:
        return references.updated(theta, key, updates, start=start, anchor=anchor, subspaces=k)

    def updated_lowrank(
        self,
        theta: Array,
        key: Key,
        updates: Sequence[Update],
        *,
        rank: int,
        place: Place,
        anchor: Array | None = None,
        k: int = 1,
    ) -> Array:
        options = {"rank": rank, "subspaces": k, "anchor": anchor}
        return references.updated(theta, key, updates, shape=place[0], corner=place[1:], **options)


class Triton:
    """`seedtune.numerics.kernels.gpu`."""

    def __init__(self, device: str) -> None:
        self.device = device

    def normals(self, address: Address, start: int, count: int) -> Array:
        out = torch.full((count,), math.nan, device=self.device)
        gpu.fill_normals(out, address, start)
        return to_numpy(out)

    def factors(
        self, key: Key, stream: int, who: Sequence[tuple[int, int]], *, start: int, count: int, **options: int
    ) -> Array:
        out = torch.full((len(who), count), math.nan, device=self.device)
        gpu.fill_factors(out, key, stream, *_columns(who), start=start, **options)
        return to_numpy(out)

    def signs(self, key: Key, stream: int, who: Sequence[tuple[int, int]], *, start: int, count: int) -> Array:
        out = torch.full((len(who), count), math.nan, device=self.device)
        gpu.fill_signs(out, key, stream, *_columns(who), start=start)
        return to_numpy(out)

    def updated_flipout(
        self,
        theta: Array,
        key: Key,
        updates: Sequence[Update],
        *,
        place: Place,
        anchor: Array | None = None,
        k: int = 1,
    ) -> Array:
        live, base = self.tensor(theta), None if anchor is None else self.tensor(anchor)
        gpu.update_flipout(live, key, updates, anchor=base, shared_noise=k, **_where(place))
        return to_numpy(live)

    def fingerprint(self, array: Array, key: Key, start: int) -> fp.Fingerprint:
        return gpu.fingerprint(self.tensor(array), key, start)

    def perturbed(self, theta: Array, dtype: str, sigma: float, address: Address, start: int, k: int = 1) -> Array:
        out = torch.full((theta.size,), math.nan, dtype=getattr(torch, dtype), device=self.device)
        gpu.perturb(out, self.tensor(theta), sigma, address, start, subspaces=k)
        return to_numpy(out)

    def updated_gaussian(
        self, theta: Array, key: Key, updates: Sequence[Update], start: int = 0, anchor: Array | None = None, k: int = 1
    ) -> Array:
        live = self.tensor(theta)
        base = None if anchor is None else self.tensor(anchor)
        gpu.update_gaussian(live, key, updates, start=start, anchor=base, subspaces=k)
        return to_numpy(live)

    def updated_lowrank(
        self,
        theta: Array,
        key: Key,
        updates: Sequence[Update],
        *,
        rank: int,
        place: Place,
        anchor: Array | None = None,
        k: int = 1,
    ) -> Array:
        live, base = self.tensor(theta), None if anchor is None else self.tensor(anchor)
        gpu.update_lowrank(live, key, updates, rank=rank, anchor=base, subspaces=k, **_where(place))
        return to_numpy(live)

    def tensor(self, array: Array) -> torch.Tensor:
        """A copy of the array on the device; uint16 becomes bfloat16."""
        tensor = torch.from_numpy(array.copy())
        return (tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor).to(self.device)


class Numba:
    """`seedtune.numerics.kernels.cpu`."""

    def normals(self, address: Address, start: int, count: int) -> Array:
        out = np.full(count, np.nan, np.float32)
        cpu.fill_normals(out, address, start)
        return out

    def factors(
        self, key: Key, stream: int, who: Sequence[tuple[int, int]], *, start: int, count: int, **options: int
    ) -> Array:
        out = np.full((len(who), count), np.nan, np.float32)
        cpu.fill_factors(out, key, stream, *_columns(who), start=start, **options)
        return out

    def signs(self, key: Key, stream: int, who: Sequence[tuple[int, int]], *, start: int, count: int) -> Array:
        out = np.full((len(who), count), np.nan, np.float32)
        cpu.fill_signs(out, key, stream, *_columns(who), start=start)
        return out

    def updated_flipout(
        self,
        theta: Array,
        key: Key,
        updates: Sequence[Update],
        *,
        place: Place,
        anchor: Array | None = None,
        k: int = 1,
    ) -> Array:
        live = theta.copy()
        cpu.update_flipout(live, key, updates, anchor=anchor, shared_noise=k, **_where(place))
        return live

    def fingerprint(self, array: Array, key: Key, start: int) -> fp.Fingerprint:
        return cpu.fingerprint(fp.bits_of(array), key, start)

    def perturbed(self, theta: Array, dtype: str, sigma: float, address: Address, start: int, k: int = 1) -> Array:
        out = np.full(theta.size, 1, rounding.ARRAYS[dtype])
        cpu.perturb(out, theta, sigma, address, start, subspaces=k)
        return out

    def updated_gaussian(
        self, theta: Array, key: Key, updates: Sequence[Update], start: int = 0, anchor: Array | None = None, k: int = 1
    ) -> Array:
        live = theta.copy()
        cpu.update_gaussian(live, key, updates, start=start, anchor=anchor, subspaces=k)
        return live

    def updated_lowrank(
        self,
        theta: Array,
        key: Key,
        updates: Sequence[Update],
        *,
        rank: int,
        place: Place,
        anchor: Array | None = None,
        k: int = 1,
    ) -> Array:
        live = theta.copy()
        cpu.update_lowrank(live, key, updates, rank=rank, anchor=anchor, subspaces=k, **_where(place))
        return live


def to_numpy(tensor: torch.Tensor) -> Array:
    """A tensor on any device as an array; bfloat16 becomes uint16."""
    tensor = tensor.cpu()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _where(place: Place) -> dict[str, Any]:
    return dict(zip(("shape", "row_start", "col_start"), place, strict=True))


def _columns(who: Sequence[tuple[int, int]]) -> tuple[Array, Array]:
    table = np.array(who, np.uint32).reshape(len(who), 2)
    return table[:, 0].copy(), table[:, 1].copy()
