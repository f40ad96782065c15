"""The numba bodies of noise in subspaces; those of noise in all elements are in `cpu_compiled`.

The same rules hold as there. Elements outside the subspace are unchanged: nothing is added, not even zero.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from seedtune.numerics.kernels.arguments import Where
from seedtune.numerics.kernels.cpu_compiled import (
    CHUNK,
    DRAW,
    ELEMENTS,
    PIECE,
    WORDS,
    draw,
    fill,
    look_up,
    settle,
    unsigned,
)
from seedtune.numerics.machine.caching import njit
from seedtune.numerics.machine.elements import nearest, widen
from seedtune.numerics.machine.vectors import perturb_16_where
from seedtune.numerics.noise import SUBSPACE

_U = np.uint64
_TAG = _U(int(SUBSPACE) << 24)


@njit(cache=True, nogil=True)
def deal(ids, words, where, generation, start, subspaces):  # type: ignore[no-untyped-def]
    """Write the subspaces (uint16) of elements ``start ..`` in a generation into ``ids``; ``words`` is scratch."""
    here = Where(_U(where.k0), _U(where.k1), _TAG, _U(0), _U(generation))
    for i in range((ids.size + (start & 7) + ELEMENTS - 1) // ELEMENTS):
        draw(words, _U(WORDS * i), _U((start >> 3) + DRAW * i), here)
    codes, count = words.view(np.uint16)[start & 7 :], np.uint32(subspaces)
    for i in range(ids.size):
        ids[i] = np.uint32(np.uint32(codes[i]) * count) >> np.uint32(16)


@njit(cache=True, nogil=True)
def add_edge(out, weights, sigma, table, where, start, ids, own):  # type: ignore[no-untyped-def]
    """Write what `add` does from any start, without vectors; ``out``, ``weights`` and ``ids`` are [n]."""
    noise = np.empty(ELEMENTS, np.float32)
    for low in range(0, out.size, ELEMENTS):
        count = min(ELEMENTS, out.size - low)
        fill(noise[:count], table, where, start + low)
        for i in range(low, low + count):
            value = widen(weights[i])
            out[i] = nearest(out, value + sigma * noise[i - low] if ids[i] == own else value)


@njit(cache=True, nogil=True)
def add_whole(out, weights, sigma, table, where, start, ids, own):  # type: ignore[no-untyped-def]
    """As `cpu_compiled.perturb_whole` on a chunk, which is in the cache: nothing has to be prefetched."""
    here = unsigned(where)
    words, noise = np.empty(2 * WORDS, np.uint64), np.empty(2 * ELEMENTS, np.float32)
    block, current, position = _U(start >> 3), _U(WORDS), _U(0)
    draw(words, _U(0), block, here)
    for part in range(4):
        look_up(noise, _U(16 * part), table, words, _U(4 * part))
    draw(words, current, block + _U(DRAW), here)
    for _ in range(out.size // ELEMENTS):
        following = current ^ _U(WORDS)
        draw(words, following, block + _U(2 * DRAW), here)
        for part in range(4):
            at = position + _U(16 * part)
            look_up(noise, _U(4) * current + _U(16 * part), table, words, current + _U(4 * part))
            perturb_16_where(out, weights, at, noise, _U(4) * following + _U(16 * part), sigma, ids, own)
        block += _U(DRAW)
        position += _U(ELEMENTS)
        current = following


@njit(cache=True, nogil=True)
def add(out, weights, sigma, table, where, start, ids, own):  # type: ignore[no-untyped-def]
    """Write out = nearest(weights + sigma * noise) where ``ids`` is ``own`` (uint16), nearest(weights) elsewhere."""
    head = min(-start & 7, out.size)
    tail = head + (out.size - head) // ELEMENTS * ELEMENTS
    add_edge(out[:head], weights[:head], sigma, table, where, start, ids[:head], own)
    add_whole(out[head:tail], weights[head:tail], sigma, table, where, start + head, ids[head:tail], own)
    add_edge(out[tail:], weights[tail:], sigma, table, where, start + tail, ids[tail:], own)


@njit(cache=True, nogil=True)
def perturb(out, weights, sigma, table, where, start, subspaces):  # type: ignore[no-untyped-def]
    """Write ``out = nearest(weights + sigma * noise)`` in the pair's subspace, ``nearest(weights)`` elsewhere; [n]."""
    ids, words = np.empty(CHUNK, np.uint16), np.empty(CHUNK // 4 + WORDS, np.uint64)
    own, low = np.uint16(where.pair % subspaces), 0
    while low < out.size:
        at = start + low
        high = min(out.size, low + CHUNK - (at & 7))
        here = ids[: high - low]
        deal(here, words, where, where.generation, at, subspaces)
        add(out[low:high], weights[low:high], sigma, table, where, at, here, own)
        low = high


@njit(cache=True, nogil=True, parallel=True)
def perturb_parallel(out, weights, sigma, table, where, start, subspaces):  # type: ignore[no-untyped-def]
    """Run `perturb` on all threads, a piece at a time."""
    for piece in prange((out.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        high = min(out.size, low + PIECE)
        perturb(out[low:high], weights[low:high], sigma, table, where, start + low, subspaces)


@njit(cache=True, nogil=True)
def update_gaussian(theta, anchor, table, tags, plan, start, subspaces):  # type: ignore[no-untyped-def]
    """As `cpu_compiled.update_gaussian`; consecutive terms of one generation share its subspaces."""
    sums, words = np.empty(CHUNK, np.float32), np.empty(CHUNK // 4 + WORDS, np.uint64)
    ids = np.empty(CHUNK, np.uint16)
    low = 0
    while low < theta.size:
        at = start + low
        high, first = min(theta.size, low + CHUNK - (at & 7)), 0
        total, dealt = sums[: high - low], ids[: high - low]
        for u in range(plan.ends.size):
            total[:] = np.float32(0)
            for t in range(first, plan.ends[u]):
                generation, pair = np.int64(plan.generations[t]), np.int64(plan.pairs[t])
                if t == 0 or plan.generations[t] != plan.generations[t - 1]:
                    deal(dealt, words, tags, generation, at, subspaces)
                here = Where(tags.k0, tags.k1, tags.noise, pair, generation)
                add(total, total, plan.weights[t], table, here, at, dealt, np.uint16(pair % subspaces))
            first = plan.ends[u]
            where = Where(tags.k0, tags.k1, tags.rounding, 0, np.int64(plan.updated[u]))
            settle(theta[low:high], total, anchor[low:high], plan.decays[u], words, where, at)
        low = high


@njit(cache=True, nogil=True, parallel=True)
def update_gaussian_parallel(theta, anchor, table, tags, plan, start, subspaces):  # type: ignore[no-untyped-def]
    """Run `update_gaussian` on all threads, a piece of theta [n] at a time."""
    for piece in prange((theta.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        high = min(theta.size, low + PIECE)
        update_gaussian(theta[low:high], anchor[low:high], table, tags, plan, start + low, subspaces)


@njit(cache=True, nogil=True)
def keep_rows(out, where, generations, pairs, first, rank, subspaces):  # type: ignore[no-untyped-def]
    """Zero the rows ``first ..`` of factors [P, rows * rank] outside their pairs' subspaces."""
    rows, ids, words = out.shape[1] // rank, np.empty(CHUNK, np.uint16), np.empty(CHUNK // 4 + 2 * WORDS, np.uint64)
    for low in range(0, rows, CHUNK):
        here = ids[: min(CHUNK, rows - low)]
        for p in range(out.shape[0]):
            if p == 0 or generations[p] != generations[p - 1]:
                deal(here, words, where, np.int64(generations[p]), first + low, subspaces)
            own, factor = np.uint16(pairs[p] % subspaces), out[p, low * rank :]
            if rank == 1:  # a loop that vectorises
                for i in range(here.size):
                    factor[i] = factor[i] if here[i] == own else np.float32(0)
            else:
                for i in range(here.size):
                    if here[i] != own:
                        factor[i * rank : (i + 1) * rank] = np.float32(0)
