"""What a decoder layer does to each row between its products, on the CPU: one compiled pass after each product.

A row's low-rank term is added to what the product gave, and the row goes on while it is in the cache: queries and
keys are rotated, the gate is applied, or the residual is added and the sum normalised.  The arithmetic is that of
the kernels it is made of, with their roundings.  ``terms`` are (a, b, ends, pairs, scales) of `lanes.add_rows`.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.bfloat16 import load, store
from seedtune.engines.transformers.cpu_kernels.lowrank_rows import add_row
from seedtune.engines.transformers.cpu_kernels.rms_norm import norm_row
from seedtune.engines.transformers.cpu_kernels.rotary import rotate_row
from seedtune.engines.transformers.cpu_kernels.silu_gate import gate_row
from seedtune.numerics.machine.caching import inner, njit

Array = NDArray[Any]
Terms = tuple[Array, Array, Array, Array, Array]


@inner()
def _add_residual(h: Any, before: Any, y: Any) -> None:  # pragma: no cover
    for j in range(h.size):
        h[j] = store(h, load(before[j]) + load(y[j]))


@njit(parallel=True, cache=True, nogil=True)
def _turn(
    y: Any, x: Any, a: Any, b: Any, ends: Any, pairs: Any, scales: Any, cos: Any, sin: Any, heads: Any
) -> None:  # pragma: no cover
    split = y.reshape(y.shape[0], y.shape[1] // cos.shape[1], cos.shape[1])
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])
        rotate_row(split[i], cos[i], sin[i], heads)


def turn(y: Array, x: Array, terms: Terms, *, angles: tuple[Array, Array], heads: int) -> None:
    """Add the terms to y (rows, all heads·dim) in place and rotate its first ``heads`` heads.

    x (rows, in) is what the product read; angles are cos and sin (rows, dim).
    """
    _turn(y, x, *terms, *angles, np.intp(heads))


@njit(parallel=True, cache=True, nogil=True)
def _gate(out: Any, y: Any, x: Any, a: Any, b: Any, ends: Any, pairs: Any, scales: Any) -> None:  # pragma: no cover
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])
        gate_row(out[i], y[i])


def gate(out: Array, y: Array, x: Array, terms: Terms) -> None:
    """Add the terms to y (rows, 2n) in place and write out = silu(y[:, :n])·y[:, n:]."""
    _gate(out, y, x, *terms)


@njit(parallel=True, cache=True, nogil=True)
def _close(
    h: Any, before: Any, y: Any, x: Any, a: Any, b: Any, ends: Any, pairs: Any, scales: Any
) -> None:  # pragma: no cover
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])
        _add_residual(h[i], before[i], y[i])


def close(h: Array, before: Array, y: Array, x: Array, terms: Terms) -> None:
    """Add the terms to y (rows, n) in place and write h = before + y; h may be before."""
    _close(h, before, y, x, *terms)


@njit(parallel=True, cache=True, nogil=True)
def _close_and_norm(
    out: Any,
    weight: Any,
    eps: Any,
    h: Any,
    before: Any,
    y: Any,
    x: Any,
    a: Any,
    b: Any,
    ends: Any,
    pairs: Any,
    scales: Any,
) -> None:  # pragma: no cover
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])
        _add_residual(h[i], before[i], y[i])
        norm_row(out[i], h[i], weight, eps)


def close_and_norm(
    out: Array, norm: tuple[Array, float], residual: tuple[Array, Array], y: Array, x: Array, terms: Terms
) -> None:
    """`close` on ``residual`` = (h, before), and out = the RMS norm of h by its weight and eps."""
    weight, eps = norm
    _close_and_norm(out, weight, np.float32(eps), *residual, y, x, *terms)
