"""Per-row low-rank perturbation of a linear layer's output, on the CPU.

For row i of member (pair p, sign s):  y_i += s·σ/√r · Aₚ (Bₚᵀ x_i).  Cost per row and part: r·(in + out)
multiply-adds, read x and B once, read and write y once; products and sums in float32.
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
def _add_rows(y: Any, x: Any, a: Any, b: Any, ends: Any, pairs: Any, scales: Any) -> None:  # pragma: no cover
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])


def add_rows(y: Array, x: Array, *, a: Array, b: Array, ends: Array, pairs: Array, scales: Array) -> None:
    """Add every row's perturbation to ``y`` in place.

    Shapes: y (rows, out), x (rows, in), a (P, r, out), b (P, parts, r, in); ``ends`` (parts,) is the end of each
    part's columns in ``out``; ``pairs`` (rows,) int32 indexes P; ``scales`` (rows,) float32 is s·σ/√r, 0 for
    unperturbed rows.  y, x, a and b are all float32 or all uint16 views of bfloat16.
    """
    _add_rows(y, x, a, b, ends, pairs, scales)
