"""Per-row low-rank perturbation of a linear layer's output, on the CPU.

For row i of member (pair p, sign s):  y_i += s·σ/√r · Aₚ (Bₚᵀ x_i).  Cost per row and part: r·(in + out)
multiply-adds, read x and B once, read and write y once; products and sums in float32.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.kernels.bits import load, store

Array = NDArray[Any]


@nb.njit(fastmath=True, nogil=True)
def _dot(x: Any, b: Any) -> Any:  # pragma: no cover
    total = np.float32(0.0)
    for j in range(x.size):
        total += load(x[j]) * load(b[j])
    return total


@nb.njit(fastmath=True, nogil=True)
def _add_scaled(y: Any, a: Any, weight: Any) -> None:  # pragma: no cover
    for j in range(y.size):
        y[j] = store(y, load(y[j]) + weight * load(a[j]))


@nb.njit(fastmath=True, nogil=True)
def _add_total(y: Any, total: Any) -> None:  # pragma: no cover
    for j in range(y.size):
        y[j] = store(y, load(y[j]) + total[j])


@nb.njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _add_rows(y: Any, x: Any, a: Any, b: Any, ends: Any, pairs: Any, scales: Any) -> None:  # pragma: no cover
    for i in nb.prange(y.shape[0]):
        if scales[i] != 0.0:
            first = 0
            for q in range(ends.size):
                weight = scales[i] * _dot(x[i], b[pairs[i], q, 0])
                _add_scaled(y[i, first : ends[q]], a[pairs[i], 0, first : ends[q]], weight)
                first = ends[q]


@nb.njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _add_rows_rank(y: Any, x: Any, a: Any, b: Any, ends: Any, pairs: Any, scales: Any) -> None:  # pragma: no cover
    for i in nb.prange(y.shape[0]):
        if scales[i] != 0.0:
            total = np.zeros(y.shape[1], np.float32)
            first = 0
            for q in range(ends.size):
                for k in range(b.shape[2]):
                    weight = scales[i] * _dot(x[i], b[pairs[i], q, k])
                    _add_scaled(total[first : ends[q]], a[pairs[i], k, first : ends[q]], weight)
                first = ends[q]
            _add_total(y[i], total)


def add_rows(y: Array, x: Array, *, a: Array, b: Array, ends: Array, pairs: Array, scales: Array) -> None:
    """Add every row's perturbation to ``y`` in place.

    Shapes: y (rows, out), x (rows, in), a (P, r, out), b (P, parts, r, in); ``ends`` (parts,) closes each
    part's columns of ``out``; ``pairs`` (rows,) int32 indexes P; ``scales`` (rows,) float32 is s·σ/√r, 0 for
    the centre.  y, x, a and b are all float32 or all uint16 views of bfloat16.
    """
    kernel = _add_rows if b.shape[2] == 1 else _add_rows_rank
    kernel(y, x, a, b, ends, pairs, scales)
