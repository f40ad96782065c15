"""The numba bodies of a step by first and second moments: elementwise, each product and sum rounded on its own."""

from __future__ import annotations

import numpy as np
from numba import prange

from seedtune.numerics.kernels.cpu_compiled import CHUNK, PIECE, WORDS, settle
from seedtune.numerics.machine.caching import njit


@njit(cache=True, nogil=True, error_model="numpy")
def moments(m, v, g, betas):  # type: ignore[no-untyped-def]
    """Write m = b1 m + (1 - b1) g and v = b2 v + ((1 - b2) g) g; ``betas`` are (b1, 1 - b1, b2, 1 - b2)."""
    keep1, new1, keep2, new2 = betas
    for i in range(m.size):
        m[i] = keep1 * m[i] + new1 * g[i]
        v[i] = keep2 * v[i] + (new2 * g[i]) * g[i]


@njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def moments_parallel(m, v, g, betas):  # type: ignore[no-untyped-def]
    for piece in prange((m.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        moments(m[low : low + PIECE], v[low : low + PIECE], g[low : low + PIECE], betas)


@njit(cache=True, nogil=True, error_model="numpy")
def scaled(m, v, factors):  # type: ignore[no-untyped-def]
    """Write m = (a m) / (sqrt(c v) + epsilon); ``factors`` are (a, c, epsilon)."""
    a, c, epsilon = factors
    for i in range(m.size):
        m[i] = (a * m[i]) / (np.sqrt(c * v[i]) + epsilon)


@njit(cache=True, nogil=True, parallel=True, error_model="numpy")
def scaled_parallel(m, v, factors):  # type: ignore[no-untyped-def]
    for piece in prange((m.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        scaled(m[low : low + PIECE], v[low : low + PIECE], factors)


@njit(cache=True, nogil=True)
def moved(theta, total, anchor, decay, where, start):  # type: ignore[no-untyped-def]
    """Write theta + total, pulled and rounded like an update at ``where``, into theta. Overwrites ``total``."""
    words, low = np.empty(CHUNK // 4 + WORDS, np.uint64), 0
    while low < theta.size:
        high = min(theta.size, low + CHUNK - ((start + low) & 7))
        settle(theta[low:high], total[low:high], anchor[low:high], decay, words, where, start + low)
        low = high


@njit(cache=True, nogil=True, parallel=True)
def moved_parallel(theta, total, anchor, decay, where, start):  # type: ignore[no-untyped-def]
    for piece in prange((theta.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        high = min(theta.size, low + PIECE)
        moved(theta[low:high], total[low:high], anchor[low:high], decay, where, start + low)
