"""Root-mean-square normalisation of rows in one pass, on the CPU."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.bfloat16 import load, store
from seedtune.engines.transformers.cpu_kernels.reductions import dot_in_lanes
from seedtune.numerics.machine.caching import inner, njit

Array = NDArray[Any]

PARALLEL_FROM = 1 << 15
"""Minimum elements for which a parallel launch pays."""


@inner(error_model="numpy")
def norm_row(y: Any, x: Any, weight: Any, eps: Any) -> None:  # pragma: no cover
    """Run `rms_norm` on one contiguous row, for compiled code."""
    total = dot_in_lanes(x, x.ctypes.data, x.ctypes.data, x.size)
    scale = np.float32(1.0) / np.sqrt(total / np.float32(x.size) + eps)
    for j in range(x.size):
        y[j] = store(y, load(weight[j]) * load(store(y, load(x[j]) * scale)))


@njit(cache=True, nogil=True)
def _norm(y: Any, x: Any, weight: Any, eps: Any) -> None:
    for i in range(x.shape[0]):
        norm_row(y[i], x[i], weight, eps)


@njit(parallel=True, cache=True, nogil=True)
def norm_rows(y: Any, x: Any, weight: Any, eps: Any) -> None:  # pragma: no cover
    """Run `rms_norm` on many rows; also callable from compiled code."""
    for i in nb.prange(x.shape[0]):
        norm_row(y[i], x[i], weight, eps)


def rms_norm(y: Array, x: Array, weight: Array, eps: float) -> None:
    """Write y = weight·x/√(mean x² + eps) for every row.

    y and x (rows, n), weight (n,); all float32, or all uint16 views of bfloat16.  The sum is float32; in
    bfloat16 the normalised value and its product with the weight are rounded, as in transformers' norms, so
    that both give the same results; the sum is computed by `reductions.dot_in_lanes`, identically on every processor.
    """
    kernel = _norm if x.size < PARALLEL_FROM else norm_rows
    kernel(y, x, weight, np.float32(eps))
