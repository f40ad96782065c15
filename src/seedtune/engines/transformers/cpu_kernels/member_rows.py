"""Per-row perturbation of a linear layer's output by its member (pair p, sign s), on the CPU.

    low rank   y_i += s·σ/√r · Aₚ (Bₚᵀ x_i)
    flipout    y_i += s·σ · rₚ ⊙ U(sₚ ⊙ x_i), whose product by U is a plain one

Cost of low rank per row and part: r·(in + out) multiply-adds, read x and B once, read and write y once; products and
sums in float32.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.bfloat16 import load, store
from seedtune.engines.transformers.cpu_kernels.reductions import dot_in_lanes
from seedtune.numerics.machine.caching import inner, njit

Array = NDArray[Any]


@inner()
def _add_scaled(y: Any, a: Any, weight: Any) -> None:  # pragma: no cover
    for j in range(y.size):
        y[j] = store(y, load(y[j]) + weight * load(a[j]))


@inner()
def _add_total(y: Any, total: Any) -> None:  # pragma: no cover
    for j in range(y.size):
        y[j] = store(y, load(y[j]) + total[j])


@inner()
def _add_rank(y: Any, x: Any, a: Any, b: Any, ends: Any, scale: Any) -> None:  # pragma: no cover
    """Add terms of several ranks, whose sum is rounded once."""
    total = np.zeros(y.size, np.float32)
    first = 0
    for q in range(ends.size):
        for k in range(b.shape[1]):
            weight = scale * dot_in_lanes(x, x.ctypes.data, b[q, k].ctypes.data, x.size)
            _add_scaled(total[first : ends[q]], a[k, first : ends[q]], weight)
        first = ends[q]
    _add_total(y, total)


@inner()
def add_row(y: Any, x: Any, a: Any, b: Any, ends: Any, scale: Any) -> None:  # pragma: no cover
    """Add one row's perturbation: y (out,), x (in,), a (r, out), b (parts, r, in); nothing for scale 0."""
    if scale == 0.0:
        return
    if b.shape[1] > 1:
        _add_rank(y, x, a, b, ends, scale)
        return
    first = 0
    for q in range(ends.size):
        _add_scaled(
            y[first : ends[q]],
            a[0, first : ends[q]],
            scale * dot_in_lanes(x, x.ctypes.data, b[q, 0].ctypes.data, x.size),
        )
        first = ends[q]


@njit(parallel=True, cache=True, nogil=True)
def _add_lowrank(y: Any, x: Any, a: Any, b: Any, ends: Any, pairs: Any, scales: Any) -> None:  # pragma: no cover
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])


def add_lowrank(y: Array, x: Array, *, a: Array, b: Array, ends: Array, pairs: Array, scales: Array) -> None:
    """Add every row's perturbation to ``y`` in place.

    Shapes: y (rows, out), x (rows, in), a (P, r, out), b (P, parts, r, in); ``ends`` (parts,) is the end of each
    part's columns in ``out``; ``pairs`` (rows,) int32 indexes P; ``scales`` (rows,) float32 is s·σ/√r, 0 for
    unperturbed rows.  y, x, a and b are all float32 or all uint16 views of bfloat16.
    """
    _add_lowrank(y, x, a, b, ends, pairs, scales)


@njit(parallel=True, cache=True, nogil=True)
def _flip(out: Any, x: Any, signs: Any, rows: Any, pairs: Any) -> None:  # pragma: no cover
    for i in nb.prange(rows.size):
        source, sign, target = x[rows[i]], signs[pairs[rows[i]]], out[i]
        for j in range(target.size):
            target[j] = store(target, load(source[j]) * load(sign[j]))


def flip(out: Array, x: Array, *, signs: Array, rows: Array, pairs: Array) -> None:
    """Write the inputs of some rows with their members' signs: out[i] = x[rows[i]] ⊙ signs[pairs[rows[i]]].

    Shapes: out (n, in), x (rows, in), signs (P, in) of -1 and 1, rows (n,) and pairs (rows,) int32.  out, x and signs
    are all float32 or all uint16 views of bfloat16.
    """
    _flip(out, x, signs, rows, pairs)


@njit(parallel=True, cache=True, nogil=True)
def _add_flipped(y: Any, z: Any, signs: Any, rows: Any, state: Any, first: Any) -> None:  # pragma: no cover
    pairs, scales = state
    for i in nb.prange(rows.size):
        source, sign, scale = z[i], signs[pairs[rows[i]]], scales[rows[i]]
        target = y[rows[i]][first : first + source.size]  # of a contiguous row: a strided one does not vectorise
        for j in range(target.size):
            target[j] = store(target, load(target[j]) + scale * (load(sign[j]) * load(source[j])))


def add_flipped(y: Array, z: Array, *, signs: Array, rows: Array, pairs: Array, scales: Array, first: int = 0) -> None:
    """Add the products by U of some rows: y[rows[i], first:] += scales[rows[i]]·signs[pairs[rows[i]]] ⊙ z[i].

    Shapes: y (rows, all outputs), z (n, out), signs (P, out) of -1 and 1, rows (n,) and pairs (rows,) int32, scales
    (rows,) float32.  y, z and signs are all float32 or all uint16 views of bfloat16; the sum is rounded once.
    """
    _add_flipped(y, z, signs, rows, (pairs, scales), first)
