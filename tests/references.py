"""Perturbations and updates in plain numpy, a whole tensor at a time: the bits that every kernel must give."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from seedtune.numerics import noise, rounding
from seedtune.numerics.noise import Address, Stream
from seedtune.types import Decay, Term, Update

Key = tuple[int, int]
DTYPES = tuple(rounding.ARRAYS)


def weights(dtype: str, *shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Random weights of an element type, some of them small, zero or negative zero."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    values *= np.float32(2.0) ** rng.integers(-20, 1, shape).astype(np.float32)
    values = np.where(rng.random(shape) < 0.02, np.copysign(np.float32(0), values), values).astype(np.float32)
    return rounding.nearest(values.reshape(-1), dtype).reshape(shape)


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    """Whether two arrays have one shape, one type and the same bits."""
    kind = {2: np.uint16, 4: np.uint32}[x.dtype.itemsize]
    return x.shape == y.shape and x.dtype == y.dtype and bool((x.view(kind) == y.view(kind)).all())


LANES = (
    (0x9E3779B97F4A7C15, (30, 27, 31), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)),
    (0xD1B54A32D192ED03, (33, 33, 33), (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)),
)
"""Step, shifts and factors of each lane of a fingerprint."""


def mix_sum(bits: np.ndarray, key: Key, start: int) -> tuple[int, int]:
    """The fingerprint of elements (uint16 or uint32 [n]), of which the first has the index ``start``."""
    sums = []
    for part, (step, shifts, factors) in zip(key, LANES, strict=True):
        z = (np.arange(bits.size, dtype=np.uint64) + np.uint64(start)) * np.uint64(step) + np.uint64(part) + bits
        for shift, factor in zip(shifts, factors, strict=False):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        sums.append(int((z ^ (z >> np.uint64(shifts[2]))).sum(dtype=np.uint64)))
    return sums[0], sums[1]


def perturbed(
    theta: np.ndarray, sigma: float, address: Address, *, start: int = 0, dtype: str, subspaces: int = 1
) -> np.ndarray:
    """nearest(theta + float32(sigma·√K)·noise), in ``dtype``; the shape of ``theta``; outside nearest(theta)."""
    value = rounding.widen(theta.reshape(-1))
    scale = np.float32(sigma * math.sqrt(subspaces))
    if scale != 0:
        own = noise.in_subspace(address, start, theta.size, subspaces=subspaces)
        value = np.where(own, value + scale * noise.normals(address, start, theta.size), value)
    return rounding.nearest(value, dtype).reshape(theta.shape)


def updated(
    theta: np.ndarray,
    key: Key,
    updates: Sequence[Update],
    *,
    shape: tuple[int, ...] | None = None,
    rank: int | None = None,
    anchor: np.ndarray | None = None,
    corner: tuple[int, int] = (0, 0),
    start: int = 0,
    subspaces: int = 1,
    shared_noise: int | None = None,
) -> np.ndarray:
    """``theta`` after ``updates``: gaussian noise (``start`` is its first element), low-rank of a ``rank``, or flipout.

    With a rank or ``shared_noise``, ``theta`` may be the slice at ``corner`` of a tensor of ``shape``.
    """
    dtype, whole = rounding.dtype_of(theta), theta.shape if shape is None else shape
    for update in updates:
        if not update.terms and update.decay is None:
            continue
        total = np.zeros(theta.shape, np.float32)
        parts = _parts(update, key, theta.shape, (whole, rank, corner, start, subspaces))
        if shared_noise:
            parts = _runs(update, key, theta.shape, (whole, corner, shared_noise))
        for part, own in parts:
            total = np.where(own, total + part, total)
        x = rounding.widen(theta) + total
        if update.decay is not None:
            assert anchor is not None
            x = _pulled(x, rounding.widen(anchor), update.decay)
        places = _places(theta.shape, whole, corner) if rank or shared_noise else np.arange(start, start + theta.size)
        codes = _codes(Address(key, Stream.ROUNDING, update.generation), places.reshape(-1))
        theta = rounding.stochastic(x.reshape(-1), codes, dtype).reshape(theta.shape)
    return theta


def _parts(update: Update, key: Key, shape: tuple[int, ...], placement: Any) -> Iterator[tuple[np.ndarray, Any]]:
    """What each term adds, in order, and where."""
    whole, rank, (row, col), start, subspaces = placement
    for term in update.terms:
        if rank is None:
            address = Address(key, Stream.GAUSSIAN, term.generation, term.pair)
            drawn = noise.normals(address, start, math.prod(shape))
            own = noise.in_subspace(address, start, drawn.size, subspaces=subspaces)
            yield np.float32(term.weight * math.sqrt(subspaces)) * drawn.reshape(shape), own.reshape(shape)
            continue
        a, b = noise.factors(
            Address(key, 0, term.generation, term.pair),
            whole,
            rank=rank,
            row=slice(row, row + shape[0]),
            col=slice(col, col + shape[1]),
            subspaces=subspaces,
        )
        scale = np.float32(term.weight * math.sqrt(subspaces) / math.sqrt(rank))
        for k in range(rank):
            yield (scale * a[:, k])[:, None] * b[:, k][None, :], True


def _runs(update: Update, key: Key, shape: tuple[int, ...], placement: Any) -> Iterator[tuple[np.ndarray, Any]]:
    """What the terms of each shared noise add together, in the order in which these come first."""
    whole, (row, col), shared_noise = placement
    cut = {"row": slice(row, row + shape[0]), "col": slice(col, col + shape[1])}
    for run in dict.fromkeys((term.generation, term.pair % shared_noise) for term in update.terms):
        q = np.zeros(shape, np.float32)
        for term in (t for t in update.terms if (t.generation, t.pair % shared_noise) == run):
            address = Address(key, 0, term.generation, term.pair)
            r = noise.signs(replace(address, stream=Stream.FACTOR_A), row, shape[0])
            s = noise.signs(replace(address, stream=Stream.FACTOR_B), col, shape[1])
            q = q + (np.float32(term.weight) * r)[:, None] * s[None, :]
        yield q * noise.normals_slice(Address(key, Stream.SHARED, *run), whole, **cut), True


def _pulled(x: np.ndarray, anchor: np.ndarray, decay: Decay) -> np.ndarray:
    d = x - anchor
    if decay.l2 != 0:
        d = (np.float32(1) - np.float32(decay.l2)) * d
    if decay.l1 != 0:
        d = np.sign(d) * np.maximum(np.abs(d) - np.float32(decay.l1), np.float32(0))
    return anchor + d


def _places(shape: tuple[int, ...], whole: tuple[int, ...], corner: tuple[int, int]) -> np.ndarray:
    """The flat index in the whole tensor of every element of a slice."""
    rows, cols = np.arange(shape[0]) + corner[0], np.arange(shape[1]) + corner[1]
    return rows[:, None] * whole[1] + cols[None, :]


def _codes(address: Address, places: np.ndarray) -> np.ndarray:
    """The codes of any elements, looked up run by run of neighbours."""
    codes, ends = np.empty(places.size, np.uint16), [*(np.flatnonzero(np.diff(places) != 1) + 1), places.size]
    for low, high in zip([0, *ends], ends, strict=False):
        codes[low:high] = noise.codes(address, int(places[low]) if high else 0, int(high - low))
    return codes


def an_update(generation: int, pairs: int, *, decay: Decay | None = None, scale: float = 0.01) -> Update:
    """An update of that many terms, of this and of earlier generations."""
    rng = np.random.default_rng(generation)
    terms = [Term(generation - p % 2, 3 * p + 1, float(scale * rng.standard_normal())) for p in range(pairs)]
    return Update(generation, tuple(terms), decay)
