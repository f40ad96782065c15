"""The row-wise steps of a decoder layer between its matrix products, on the CPU: one compiled pass after each.

A row's low-rank term is added to the product's output, and the row is processed while it is in the cache: queries
and keys are rotated, the gate is applied, or the residual is added and the sum normalised.  The arithmetic and its
roundings equal those of the separate kernels.  ``terms`` are (a, b, ends, pairs, scales) of
`lowrank_rows.add_rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.attention import decode_rows
from seedtune.engines.transformers.cpu_kernels.bfloat16 import load, store
from seedtune.engines.transformers.cpu_kernels.lowrank_rows import add_row
from seedtune.engines.transformers.cpu_kernels.products import product
from seedtune.engines.transformers.cpu_kernels.rms_norm import norm_row, norm_rows
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

    x (rows, in) is the product's input; angles are cos and sin (rows, dim).
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
    out: Array, h: Array, before: Array, y: Array, x: Array, terms: Terms, *, weight: Array, eps: float
) -> None:
    """Run `close`, and write out = the RMS norm of h by its weight and eps."""
    _close_and_norm(out, weight, np.float32(eps), h, before, y, x, *terms)


@njit(cache=True, nogil=True)
def _decode_layer(
    h: Any,
    before: Any,
    norms: Any,
    weights: Any,
    terms: Any,
    rows: Any,
    angles: Any,
    cache: Any,
    shape: Any,
    how: Any,
) -> None:  # pragma: no cover
    (pairs, scales), (cos, sin), (keys, values, lengths) = rows, angles, cache
    (norm_in, eps_in), (norm_out, eps_out) = norms
    heads, kv_heads, dim, width, shares = shape
    count, all_heads = h.shape[0], heads + 2 * kv_heads
    x, z = np.empty_like(h), np.empty_like(h)

    norm_rows(x, before, norm_in, eps_in)
    y = np.empty((count, all_heads * dim), h.dtype)
    product(y, x, weights[0][0], weights[0][1], shares)
    a, b, ends = terms[0]
    _turn(y, x, a, b, ends, pairs, scales, cos, sin, heads + kv_heads)

    split, read = y.reshape(count, all_heads, dim), np.empty((count, heads, dim), h.dtype)
    k, v = split[:, heads : heads + kv_heads], split[:, heads + kv_heads :]
    decode_rows(read, split[:, :heads], k, v, keys, values, lengths, how, shares)

    found = read.reshape(count, heads * dim)
    product(z, found, weights[1][0], weights[1][1], shares)
    a, b, ends = terms[1]
    _close_and_norm(x, norm_out, eps_out, h, before, z, found, a, b, ends, pairs, scales)

    y, gated = np.empty((count, 2 * width), h.dtype), np.empty((count, width), h.dtype)
    product(y, x, weights[2][0], weights[2][1], shares)
    a, b, ends = terms[2]
    _gate(gated, y, x, a, b, ends, pairs, scales)

    product(z, gated, weights[3][0], weights[3][1], shares)
    a, b, ends = terms[3]
    _close(h, h, z, gated, a, b, ends, pairs, scales)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Number of query heads and key heads, their dimension, and the width of the feed-forward layer."""

    heads: int
    kv_heads: int
    dim: int
    width: int


def decode_layer(
    h: Array,
    before: Array,
    *,
    norms: tuple[tuple[Array, float], tuple[Array, float]],
    weights: tuple[tuple[Array, Array], ...],
    terms: tuple[Terms, ...],
    angles: tuple[Array, Array],
    cache: tuple[Array, Array],
    lengths: Array,
    shape: LayerShape,
    how: tuple[float, int, float],
) -> None:
    """Write h (rows, hidden), the output of a layer for ``before`` (rows, hidden) in a decode step, in one call.

    Float32 or the bits of bfloat16, all of one type and C contiguous; shapes are the caller's to guarantee.
    ``norms``: weight (hidden,) and eps before attention and before the feed-forward layer.  ``weights``: panels and
    start values of `products.multiply` for queries, keys and values; the attention output; gate and up; and down.
    ``terms``: the low-rank terms of these four.  ``angles``: cos and sin (rows, dim).  ``cache``: keys
    (slots, kv_heads, dim, time) and values (slots, kv_heads, time, dim).  ``lengths``: (rows,) int32.  ``how``:
    scaling, window, softcap.
    """
    (norm_in, eps_in), (norm_out, eps_out) = norms
    scaling, window, softcap = how
    _decode_layer(
        h,
        before,
        ((norm_in, np.float32(eps_in)), (norm_out, np.float32(eps_out))),
        weights,
        tuple(term[:3] for term in terms),
        terms[0][3:],
        angles,
        (*cache, lengths),
        (shape.heads, shape.kv_heads, shape.dim, shape.width, nb.get_num_threads()),
        (np.float32(scaling), window, np.float32(softcap)),
    )
