"""One decode step of attention over the slots of a key-value cache, on the CPU.

Keys lie transposed (slots, heads, dim, time), so that scores are sums over contiguous time and values
(slots, heads, time, dim) are sums over contiguous dim: both loops vectorise and read the cache once.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.kernels.bits import load, store
from seedtune.kernels.exponential import exp
from seedtune.kernels.simd import sum_rows_1, sum_rows_4

Array = NDArray[Any]


@nb.njit(fastmath=True, nogil=True, error_model="numpy")
def _softmax(scores: Any, softcap: Any) -> None:  # pragma: no cover
    if softcap > 0.0:
        for t in range(scores.size):
            scores[t] = softcap * np.tanh(scores[t] / softcap)
    top = scores[0]
    for t in range(scores.size):
        top = max(top, scores[t])
    mass = np.float32(0.0)
    for t in range(scores.size):
        scores[t] = exp(scores[t] - top)
    for t in range(scores.size):
        mass += scores[t]
    for t in range(scores.size):
        scores[t] /= mass


@nb.njit(nogil=True)
def _sum_rows(
    like: Any, out: Any, rows: Any, stride: Any, weights: Any, count: Any, width: Any
) -> None:  # pragma: no cover
    """out[0:width] = Σ weights[j]·rows[j], 64 columns at a time, then 16 (width is rounded up to 16)."""
    done = 0
    size = like.itemsize
    while done < width:
        if width - done > 48:
            sum_rows_4(like, out + 4 * done, rows + size * done, stride, weights, count)
            done += 64
        else:
            sum_rows_1(like, out + 4 * done, rows + size * done, stride, weights, count)
            done += 16


@nb.njit(parallel=True, fastmath=True, cache=True, nogil=True)
def _decode(
    out: Any,
    q: Any,
    k: Any,
    v: Any,
    keys: Any,
    values: Any,
    lengths: Any,
    scaling: Any,
    window: Any,
    softcap: Any,
) -> None:  # pragma: no cover
    kv_heads, dim, time = keys.shape[1:]
    value_dim = values.shape[3]
    group = q.shape[1] // kv_heads
    size = keys.itemsize
    for task in nb.prange(q.shape[0] * kv_heads):
        i, h = task // kv_heads, task % kv_heads
        now = lengths[i]
        for d in range(dim):
            keys[i, h, d, now] = k[i, h, d]
        for d in range(value_dim):
            values[i, h, now, d] = v[i, h, d]
        first = max(0, now + 1 - window) if window > 0 else 0
        start = first // 16 * 16
        query, scores, total = (
            np.empty(dim, np.float32),
            np.empty(time, np.float32),
            np.empty(value_dim, np.float32),
        )
        key_rows = keys.ctypes.data + size * ((i * kv_heads + h) * dim * time + start)
        value_rows = values.ctypes.data + size * ((i * kv_heads + h) * time + first) * value_dim
        for g in range(h * group, h * group + group):
            for d in range(dim):
                query[d] = load(q[i, g, d]) * scaling
            _sum_rows(keys, scores.ctypes.data, key_rows, size * time, query.ctypes.data, dim, now + 1 - start)
            weights = scores[first - start : now + 1 - start]
            _softmax(weights, softcap)
            _sum_rows(
                values,
                total.ctypes.data,
                value_rows,
                size * value_dim,
                weights.ctypes.data,
                weights.size,
                value_dim,
            )
            for d in range(value_dim):
                out[i, g, d] = store(out, total[d])


def decode(
    out: Array,
    q: Array,
    *,
    new: tuple[Array, Array],
    cache: tuple[Array, Array],
    lengths: Array,
    scaling: float,
    window: int = 0,
    softcap: float = 0.0,
) -> None:
    """Write each row's new key and value at ``lengths[i]`` of its slot and attend to everything up to it.

    Shapes: out and q (rows, heads, dim), new (rows, kv_heads, dim) twice, cache keys
    (slots, kv_heads, dim, time) and values (slots, kv_heads, time, dim); row i uses slot i.  ``window`` > 0
    limits attention to that many latest tokens; ``softcap`` > 0 squashes scores by c·tanh(s/c).
    float32, or uint16 views of bfloat16; sums in float32.
    """
    k, v = new
    keys, values = cache
    _decode(out, q, k, v, keys, values, lengths, np.float32(scaling), window, np.float32(softcap))
