"""The numba bodies of flipout updates; the same rules hold as in `cpu_compiled`."""

from __future__ import annotations

import numpy as np
from numba import prange

from seedtune.numerics.kernels.arguments import Where
from seedtune.numerics.kernels.cpu_compiled import PIECE, TILE, WORDS, add_terms, fill, settle
from seedtune.numerics.machine.caching import njit


@njit(cache=True, nogil=True)
def run_end(plan, first, last, shared_noise):  # type: ignore[no-untyped-def]
    """Return the end of the run of terms from ``first`` on, before ``last``, that share one generation's normals."""
    end = first + 1
    group = np.int64(plan.pairs[first]) % shared_noise
    while (
        end < last
        and plan.generations[end] == plan.generations[first]
        and np.int64(plan.pairs[end]) % shared_noise == group
    ):
        end += 1
    return end


@njit(cache=True, nogil=True)
def update_rows(theta, anchor, table, r, s, tags, plan, place, shared_noise, low, high):  # type: ignore[no-untyped-def]
    """Update rows ``low .. high - 1`` with signs r (terms, rows) and s (terms, columns)."""
    n = theta.shape[1]
    scale, sums = np.empty(plan.weights.size, np.float32), np.empty(TILE, np.float32)
    signed, normals = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    words = np.empty(TILE // 4 + WORDS, np.uint64)
    for left in range(0, n, TILE):
        right = min(n, left + TILE)
        total, q, shared = sums[: right - left], signed[: right - left], normals[: right - left]
        for i in range(low, high):
            for p in range(plan.weights.size):
                scale[p] = plan.weights[p] * r[p, i]
            first, start = 0, place.first + i * place.stride + left
            for u in range(plan.ends.size):
                total[:] = np.float32(0)
                while first < plan.ends[u]:
                    end = run_end(plan, first, plan.ends[u], shared_noise)
                    group, generation = np.int64(plan.pairs[first]) % shared_noise, np.int64(plan.generations[first])
                    fill(shared, table, Where(tags.k0, tags.k1, tags.noise, group, generation), start)
                    add_terms(q, scale, s, first, end, left)
                    for j in range(total.size):
                        total[j] += q[j] * shared[j]
                    first = end
                where = Where(tags.k0, tags.k1, tags.rounding, 0, np.int64(plan.updated[u]))
                settle(theta[i, left:right], total, anchor[i, left:right], plan.decays[u], words, where, start)


@njit(cache=True, nogil=True)
def update_flipout(theta, anchor, table, r, s, tags, plan, place, shared_noise):  # type: ignore[no-untyped-def]
    """Apply all updates of a plan, whose terms are in runs, to theta [rows, columns], see `update_rows`."""
    update_rows(theta, anchor, table, r, s, tags, plan, place, shared_noise, 0, theta.shape[0])


@njit(cache=True, nogil=True, parallel=True)
def update_flipout_parallel(theta, anchor, table, r, s, tags, plan, place, shared_noise):  # type: ignore[no-untyped-def]
    """Run `update_flipout` on all threads, some rows at a time."""
    rows = max(1, PIECE // max(1, theta.shape[1]))
    for piece in prange((theta.shape[0] + rows - 1) // rows):
        first = piece * rows
        last = min(theta.shape[0], first + rows)
        update_rows(theta, anchor, table, r, s, tags, plan, place, shared_noise, first, last)
