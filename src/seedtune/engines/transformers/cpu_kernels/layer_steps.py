"""The row-wise steps of a decoder layer between its matrix products, on the CPU: one compiled pass after each.

A row's low-rank term is added to the product's output, and the row is processed while it is in the cache: queries
and keys are rotated, the gate is applied, or the residual is added and the sum normalised.  The arithmetic and its
roundings equal those of the separate kernels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.attention import AttentionOptions, FilledCache, decode_rows, single
from seedtune.engines.transformers.cpu_kernels.bfloat16 import load, store
from seedtune.engines.transformers.cpu_kernels.member_rows import add_row
from seedtune.engines.transformers.cpu_kernels.products import product
from seedtune.engines.transformers.cpu_kernels.rms_norm import norm_row, norm_rows
from seedtune.engines.transformers.cpu_kernels.rotary import rotate_row
from seedtune.engines.transformers.cpu_kernels.silu_gate import gate_row
from seedtune.numerics.machine.caching import inner, njit

Array = NDArray[Any]


class Terms(NamedTuple):
    """What `member_rows.add_lowrank` adds to a product: factors, ends of its parts, and each row's pair and scale."""

    a: Array
    b: Array
    ends: Array
    pairs: Array
    scales: Array


class Norm(NamedTuple):
    """Weight (hidden,) and epsilon of an RMS norm."""

    weight: Array
    eps: np.float32


class LayerShape(NamedTuple):
    """Number of query heads and key heads, their dimension, and the width of the feed-forward layer."""

    heads: int
    kv_heads: int
    dim: int
    width: int


@inner()
def _add_residual(h: Any, before: Any, y: Any) -> None:  # pragma: no cover
    for j in range(h.size):
        h[j] = store(h, load(before[j]) + load(y[j]))


@njit(parallel=True, cache=True, nogil=True)
def turn(y: Any, x: Any, terms: Any, cos: Any, sin: Any, heads: Any) -> None:  # pragma: no cover
    """Add the terms to y (rows, all heads·dim) in place and rotate its first ``heads`` heads.

    x (rows, in) is the product's input, cos and sin (rows, dim).
    """
    a, b, ends, pairs, scales = terms
    split = y.reshape(y.shape[0], y.shape[1] // cos.shape[1], cos.shape[1])
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])
        rotate_row(split[i], cos[i], sin[i], heads)


@njit(parallel=True, cache=True, nogil=True)
def gate(out: Any, y: Any, x: Any, terms: Any) -> None:  # pragma: no cover
    """Add the terms to y (rows, 2n) in place and write out = silu(y[:, :n])·y[:, n:]."""
    a, b, ends, pairs, scales = terms
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])
        gate_row(out[i], y[i])


@njit(parallel=True, cache=True, nogil=True)
def close(h: Any, before: Any, y: Any, x: Any, terms: Any) -> None:  # pragma: no cover
    """Add the terms to y (rows, n) in place and write h = before + y; h may be before."""
    a, b, ends, pairs, scales = terms
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])
        _add_residual(h[i], before[i], y[i])


@njit(parallel=True, cache=True, nogil=True)
def close_and_norm(out: Any, norm: Any, h: Any, before: Any, y: Any, x: Any, terms: Any) -> None:  # pragma: no cover
    """Run `close`, and write out = the RMS norm of h."""
    a, b, ends, pairs, scales = terms
    weight, eps = norm
    for i in nb.prange(y.shape[0]):
        add_row(y[i], x[i], a[pairs[i]], b[pairs[i]], ends, scales[i])
        _add_residual(h[i], before[i], y[i])
        norm_row(out[i], h[i], weight, eps)


@njit(cache=True, nogil=True)
def _decode_layer(
    h: Any,
    before: Any,
    norms: Any,
    weights: Any,
    terms: Any,
    angles: Any,
    cache: Any,
    shape: Any,
    options: Any,
    shares: Any,
) -> None:  # pragma: no cover
    heads, kv_heads, dim = shape.heads, shape.kv_heads, shape.dim
    count, all_heads = h.shape[0], heads + 2 * kv_heads
    x, z = np.empty_like(h), np.empty_like(h)

    norm_rows(x, before, norms[0].weight, norms[0].eps)
    y = np.empty((count, all_heads * dim), h.dtype)
    product(y, x, weights[0][0], weights[0][1], shares)
    turn(y, x, terms[0], angles[0], angles[1], heads + kv_heads)

    split, read = y.reshape(count, all_heads, dim), np.empty((count, heads, dim), h.dtype)
    k, v = split[:, heads : heads + kv_heads], split[:, heads + kv_heads :]
    decode_rows(read, split[:, :heads], k, v, cache.keys, cache.values, cache.lengths, options, shares)

    found = read.reshape(count, heads * dim)
    product(z, found, weights[1][0], weights[1][1], shares)
    close_and_norm(x, norms[1], h, before, z, found, terms[1])

    y, gated = np.empty((count, 2 * shape.width), h.dtype), np.empty((count, shape.width), h.dtype)
    product(y, x, weights[2][0], weights[2][1], shares)
    gate(gated, y, x, terms[2])

    product(z, gated, weights[3][0], weights[3][1], shares)
    close(h, h, z, gated, terms[3])


def decode_layer(
    h: Array,
    before: Array,
    *,
    norms: tuple[Norm, Norm],
    weights: tuple[tuple[Array, Array], ...],
    terms: tuple[Terms, ...],
    angles: tuple[Array, Array],
    cache: FilledCache,
    shape: LayerShape,
    options: AttentionOptions,
) -> None:
    """Write h (rows, hidden), the output of a layer for ``before`` (rows, hidden) in a decode step, in one call.

    Float32 or the bits of bfloat16, all of one type and C contiguous; shapes are the caller's to guarantee.
    ``norms``: before attention and before the feed-forward layer.  ``weights``: panels and start values of
    `products.multiply` for queries, keys and values; the attention output; gate and up; and down.
    ``terms``: the low-rank terms of these four.  ``angles``: cos and sin (rows, dim).
    """
    _decode_layer(h, before, norms, weights, terms, angles, cache, shape, single(options), nb.get_num_threads())
