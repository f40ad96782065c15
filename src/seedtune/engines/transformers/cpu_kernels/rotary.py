"""Rotary position embedding of packed queries and keys, in place, on the CPU."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.bfloat16 import load, store
from seedtune.numerics.machine.caching import inner, njit

Array = NDArray[Any]

PARALLEL_FROM = 1 << 15
"""Minimum elements for which a parallel launch pays."""


@inner()
def rotate_row(x: Any, cos: Any, sin: Any, heads: Any) -> None:  # pragma: no cover
    """Run `rotate` on one token, for compiled code."""
    half = x.shape[1] // 2
    for h in range(heads):
        for d in range(half):
            low, high = load(x[h, d]), load(x[h, d + half])
            low_cos, high_sin = store(x, low * load(cos[d])), store(x, high * load(sin[d]))
            high_cos, low_sin = store(x, high * load(cos[d + half])), store(x, low * load(sin[d + half]))
            x[h, d] = store(x, load(low_cos) - load(high_sin))
            x[h, d + half] = store(x, load(high_cos) + load(low_sin))


@njit(cache=True, nogil=True)
def _rotate(x: Any, cos: Any, sin: Any, heads: Any) -> None:  # pragma: no cover
    for i in range(x.shape[0]):
        rotate_row(x[i], cos[i], sin[i], heads)


@njit(parallel=True, cache=True, nogil=True)
def _rotate_parallel(x: Any, cos: Any, sin: Any, heads: Any) -> None:  # pragma: no cover
    for i in nb.prange(x.shape[0]):
        rotate_row(x[i], cos[i], sin[i], heads)


def rotate(x: Array, cos: Array, sin: Array, heads: int) -> None:
    """Rotate in place, x ← x·cos + rotate_half(x)·sin for the first ``heads`` heads of every token.

    x (tokens, all heads, dim), cos and sin (tokens, dim); all float32, or all uint16 views of bfloat16, where
    both products and their sum are rounded, as transformers' models do.
    """
    kernel = _rotate if x.shape[0] * heads * x.shape[2] < PARALLEL_FROM else _rotate_parallel
    kernel(x, cos, sin, np.intp(heads))
