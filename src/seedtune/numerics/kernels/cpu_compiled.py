"""The numba bodies behind `seedtune.numerics.kernels.cpu`: no checks, positional arguments, arrays C contiguous.

Weights are float32, uint16 or int16 arrays, see `elements`. Indices into arrays are unsigned or plain loop
counters: for an index that might be negative numba adds a test, and the loop does not vectorise.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from seedtune.numerics import fingerprint as reference
from seedtune.numerics.kernels.arguments import Where
from seedtune.numerics.machine import vectors
from seedtune.numerics.machine.caching import njit
from seedtune.numerics.machine.elements import nearest, stochastic, widen
from seedtune.numerics.machine.vectors import perturb_16, prefetch_read, prefetch_write
from seedtune.numerics.noise import PHILOX_M0, PHILOX_M1, PHILOX_ROUNDS, PHILOX_W0, PHILOX_W1

PIECE = 1 << 16  # elements that one thread processes at a time
CHUNK = 1 << 14  # elements of a gaussian update, whose sums stay in the second-level cache next to the table
TILE = 512  # columns of a low-rank update that stay in the first-level cache
AHEAD = 256  # elements by which a perturbation prefetches
DRAW = 8  # Philox blocks drawn at a time, one AVX-512 register of 64-bit lanes
ELEMENTS = 8 * DRAW
WORDS = 2 * DRAW  # 64-bit words of a draw

_U = np.uint64
_M0, _M1, _W0, _W1 = _U(PHILOX_M0), _U(PHILOX_M1), _U(PHILOX_W0), _U(PHILOX_W1)
_LOW, _CODE = _U(0xFFFFFFFF), _U(0xFFFF)
_STEP0, _STEP1 = _U(reference.STEP0), _U(reference.STEP1)
_SPLIT_A, _SPLIT_B = _U(reference.SPLITMIX_A), _U(reference.SPLITMIX_B)
_MURMUR_A, _MURMUR_B = _U(reference.MURMUR_A), _U(reference.MURMUR_B)

# ---------------------------------------------------------------------------------------------- noise


@njit(inline="always")
def philox(block, tag, pair, generation, k0, k1):  # type: ignore[no-untyped-def]
    """Return eight 16-bit codes of one block as two 64-bit words, lane 0 lowest.

    Words stay in 64-bit lanes whose upper halves are arbitrary: the 32-bit multiplier of a vector unit reads
    only the lower half, so nothing has to be widened or narrowed between the rounds.
    """
    c0, c1, c2, c3 = block, tag | (block >> _U(32)), pair, generation
    for _ in range(PHILOX_ROUNDS):
        product0, product1 = _M0 * (c0 & _LOW), _M1 * (c2 & _LOW)
        c0, c1 = (product1 >> _U(32)) ^ c1 ^ k0, product1
        c2, c3 = (product0 >> _U(32)) ^ c3 ^ k1, product0
        k0, k1 = k0 + _W0, k1 + _W1
    return (c0 & _LOW) | (c1 << _U(32)), (c2 & _LOW) | (c3 << _U(32))


@njit(inline="always")
def draw(words, at, block, where):  # type: ignore[no-untyped-def]
    """Write the codes of DRAW blocks into ``words[at : at + WORDS]``."""
    for i in range(DRAW):
        low, high = philox(block + _U(i), where.tag, where.pair, where.generation, where.k0, where.k1)
        words[at + _U(2 * i)], words[at + _U(2 * i + 1)] = low, high


@njit(inline="always")
def unsigned(where):  # type: ignore[no-untyped-def]
    """Return the address with all words in unsigned 64-bit lanes."""
    return Where(_U(where.k0), _U(where.k1), _U(where.tag), _U(where.pair), _U(where.generation))


@njit(cache=True, nogil=True)
def fill(out, table, where, start):  # type: ignore[no-untyped-def]
    """Write the normals of elements ``start ..`` at ``where`` into ``out`` (float32 [n])."""
    here = unsigned(where)
    # Two draws alternate: the next one is computed while the look-ups of the current one wait for the cache.
    words = np.empty(2 * WORDS, np.uint64)
    block, current, position = _U(start >> 3), _U(0), _U(0)
    draw(words, current, block, here)
    skip, left = start & 7, out.size
    while left > 0:
        block += _U(DRAW)
        following = current ^ _U(WORDS)
        draw(words, following, block, here)
        if skip == 0 and left >= ELEMENTS:
            for j in range(WORDS):
                word, at = words[current + _U(j)], position + _U(4 * j)
                out[at] = table[word & _CODE]
                out[at + _U(1)] = table[(word >> _U(16)) & _CODE]
                out[at + _U(2)] = table[(word >> _U(32)) & _CODE]
                out[at + _U(3)] = table[word >> _U(48)]
            count = ELEMENTS
        else:
            count = min(ELEMENTS - skip, left)
            for j in range(skip, skip + count):
                word = words[current + _U(j >> 2)] >> _U(16 * (j & 3))
                out[position + _U(j - skip)] = table[word & _CODE]
            skip = 0
        position += _U(count)
        left -= count
        current = following


@njit(cache=True, nogil=True, parallel=True)
def fill_parallel(out, table, where, start):  # type: ignore[no-untyped-def]
    """Run `fill` on all threads, a piece at a time."""
    for piece in prange((out.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        fill(out[low : low + PIECE], table, where, start + low)


@njit(cache=True, nogil=True)
def fill_factors(out, table, where, generations, pairs, start):  # type: ignore[no-untyped-def]
    """Write one factor for P pairs into ``out`` (float32 [P, n]); ``generations`` and ``pairs`` are [P]."""
    for p in range(out.shape[0]):
        here = Where(where.k0, where.k1, where.tag, np.int64(pairs[p]), np.int64(generations[p]))
        fill(out[p], table, here, start)


@njit(cache=True, nogil=True, parallel=True)
def fill_factors_parallel(out, table, where, generations, pairs, start):  # type: ignore[no-untyped-def]
    """Run `fill_factors` on all threads, a piece of one pair at a time."""
    pieces = (out.shape[1] + PIECE - 1) // PIECE
    for task in prange(out.shape[0] * pieces):
        p, low = task // pieces, task % pieces * PIECE
        here = Where(where.k0, where.k1, where.tag, np.int64(pairs[p]), np.int64(generations[p]))
        fill(out[p, low : low + PIECE], table, here, start + low)


# ---------------------------------------------------------------------------------------------- perturb


@njit(cache=True, nogil=True)
def perturb_edge(out, weights, sigma, table, where, start):  # type: ignore[no-untyped-def]
    """Write what `perturb` does from any start, without vectors; ``out`` and ``weights`` are [n]."""
    noise = np.empty(ELEMENTS, np.float32)
    for low in range(0, out.size, ELEMENTS):
        count = min(ELEMENTS, out.size - low)
        fill(noise[:count], table, where, start + low)
        for i in range(low, low + count):
            out[i] = nearest(out, widen(weights[i]) + sigma * noise[i - low])


@njit(inline="always")
def look_up(noise, at, table, words, first):  # type: ignore[no-untyped-def]
    """Write the normals of a quarter of a draw into ``noise[at : at + 16]``."""
    for j in range(WORDS // 4):
        word, i = words[first + _U(j)], at + _U(4 * j)
        noise[i] = table[word & _CODE]
        noise[i + _U(1)] = table[(word >> _U(16)) & _CODE]
        noise[i + _U(2)] = table[(word >> _U(32)) & _CODE]
        noise[i + _U(3)] = table[word >> _U(48)]


@njit(cache=True, nogil=True)
def perturb_whole(out, weights, sigma, table, where, start):  # type: ignore[no-untyped-def]
    """Perturb whole draws from an aligned start; limited by the look-ups, whose table fits the second-level cache.

    Three draws are in progress at a time, so that look-ups always overlap with other work: codes of one draw, look-ups
    of the previous one, and arithmetic on the one before that, sixteen elements of each in turn.
    """
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
            at, ahead = position + _U(16 * part), position + _U(AHEAD + 16 * part)
            prefetch_read(weights, ahead)
            prefetch_write(out, ahead)
            look_up(noise, _U(4) * current + _U(16 * part), table, words, current + _U(4 * part))
            perturb_16(out, weights, at, noise, _U(4) * following + _U(16 * part), sigma)
        block += _U(DRAW)
        position += _U(ELEMENTS)
        current = following


@njit(cache=True, nogil=True)
def perturb(out, weights, sigma, table, where, start):  # type: ignore[no-untyped-def]
    """Write ``out = nearest(weights + sigma * noise)`` for elements ``start ..``; both are [n]."""
    head = min(-start & 7, out.size)
    tail = head + (out.size - head) // ELEMENTS * ELEMENTS
    perturb_edge(out[:head], weights[:head], sigma, table, where, start)
    perturb_whole(out[head:tail], weights[head:tail], sigma, table, where, start + head)
    perturb_edge(out[tail:], weights[tail:], sigma, table, where, start + tail)


@njit(cache=True, nogil=True, parallel=True)
def perturb_parallel(out, weights, sigma, table, where, start):  # type: ignore[no-untyped-def]
    """Run `perturb` on all threads, a piece at a time."""
    for piece in prange((out.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        high = min(out.size, low + PIECE)
        perturb(out[low:high], weights[low:high], sigma, table, where, start + low)


@njit(cache=True, nogil=True)
def convert(out, weights):  # type: ignore[no-untyped-def]
    """Write ``out = nearest(weights)``; both are [n]."""
    for i in range(out.size):
        out[i] = nearest(out, widen(weights[i]))


@njit(cache=True, nogil=True, parallel=True)
def convert_parallel(out, weights):  # type: ignore[no-untyped-def]
    """Run `convert` on all threads, a piece at a time."""
    for piece in prange((out.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        convert(out[low : low + PIECE], weights[low : low + PIECE])


# ---------------------------------------------------------------------------------------------- updates


@njit(inline="always")
def pulled(x, anchor, keep, cut):  # type: ignore[no-untyped-def]
    """Return x after a decay: its distance to ``anchor`` times ``keep`` (if not 1), less ``cut`` (if not 0)."""
    d = x - anchor
    if keep != np.float32(1):
        d = keep * d
    if cut != np.float32(0):
        rest = max(abs(d) - cut, np.float32(0))
        d = rest if d > 0 else (-rest if d < 0 else (np.float32(0) if d == 0 else d))
    return anchor + d


@njit(cache=True, nogil=True)
def settle(theta, total, anchor, decay, words, where, start):  # type: ignore[no-untyped-def]
    """Write theta + total, pulled to the anchor if ``decay`` (on, keep, cut) is on, rounded once, into theta."""
    on, keep, cut = decay[0] != np.float32(0), decay[1], decay[2]
    if theta.itemsize == 4 and not on:
        for i in range(theta.size):
            theta[i] = nearest(theta, widen(theta[i]) + total[i])
        return
    for i in range(theta.size):
        total[i] = widen(theta[i]) + total[i]
    if on:
        for i in range(theta.size):
            total[i] = pulled(total[i], widen(anchor[i]), keep, cut)
    here = unsigned(where)
    if theta.itemsize == 2:
        for i in range((theta.size + (start & 7) + ELEMENTS - 1) // ELEMENTS):
            draw(words, _U(WORDS * i), _U((start >> 3) + DRAW * i), here)
    codes = words.view(np.uint16)[start & 7 :]
    for i in range(theta.size):
        theta[i] = stochastic(theta, total[i], codes[i])


@njit(cache=True, nogil=True)
def update_gaussian(theta, anchor, table, tags, plan, start):  # type: ignore[no-untyped-def]
    """Apply all updates of a plan, chunk by chunk."""
    sums, words = np.empty(CHUNK, np.float32), np.empty(CHUNK // 4 + WORDS, np.uint64)
    low = 0
    while low < theta.size:
        at = start + low
        # Every chunk after the first starts at a block.
        high, first = min(theta.size, low + CHUNK - (at & 7)), 0
        total = sums[: high - low]
        for u in range(plan.ends.size):
            total[:] = np.float32(0)
            for t in range(first, plan.ends[u]):
                pair, generation = np.int64(plan.pairs[t]), np.int64(plan.generations[t])
                perturb(total, total, plan.weights[t], table, Where(tags.k0, tags.k1, tags.noise, pair, generation), at)
            first = plan.ends[u]
            where = Where(tags.k0, tags.k1, tags.rounding, 0, np.int64(plan.updated[u]))
            settle(theta[low:high], total, anchor[low:high], plan.decays[u], words, where, at)
        low = high


@njit(cache=True, nogil=True, parallel=True)
def update_gaussian_parallel(theta, anchor, table, tags, plan, start):  # type: ignore[no-untyped-def]
    """Run `update_gaussian` on all threads, a piece of theta [n] at a time."""
    for piece in prange((theta.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        update_gaussian(theta[low : low + PIECE], anchor[low : low + PIECE], table, tags, plan, start + low)


@njit(nogil=True)
def add_terms(total, scale, columns, first, last, left):  # type: ignore[no-untyped-def]
    """Add terms first..last-1 in turn, from 0, on a tile of columns (its width rounded up to 16)."""
    stride, done = 4 * columns.shape[1], 0
    out, rows = total.ctypes.data, columns.ctypes.data + first * stride + 4 * left
    weights = scale.ctypes.data + 4 * first
    while done < total.size:
        if total.size - done > 112:
            vectors.sum_in_order_8(columns, out + 4 * done, rows + 4 * done, stride, weights, last - first)
            done += 128
        elif total.size - done > 48:
            vectors.sum_in_order_4(columns, out + 4 * done, rows + 4 * done, stride, weights, last - first)
            done += 64
        else:
            vectors.sum_in_order_1(columns, out + 4 * done, rows + 4 * done, stride, weights, last - first)
            done += 16


@njit(cache=True, nogil=True)
def update_lowrank_rows(theta, anchor, a, columns, tags, plan, place, low, high):  # type: ignore[no-untyped-def]
    """Update rows ``low .. high - 1`` with factors A (terms, rows, rank) and Bᵀ (terms · rank, columns)."""
    rank, n = a.shape[2], theta.shape[1]
    scale, sums = np.empty(columns.shape[0], np.float32), np.empty(TILE, np.float32)
    words = np.empty(TILE // 4 + WORDS, np.uint64)
    for left in range(0, n, TILE):
        right = min(n, left + TILE)
        total = sums[: right - left]
        for i in range(low, high):
            for p in range(plan.weights.size):
                for k in range(rank):
                    scale[p * rank + k] = plan.weights[p] * a[p, i, k]
            first, start = 0, place.first + i * place.stride + left
            for u in range(plan.ends.size):
                add_terms(total, scale, columns, first, plan.ends[u] * rank, left)
                first = plan.ends[u] * rank
                where = Where(tags.k0, tags.k1, tags.rounding, 0, np.int64(plan.updated[u]))
                settle(theta[i, left:right], total, anchor[i, left:right], plan.decays[u], words, where, start)


@njit(cache=True, nogil=True)
def update_lowrank(theta, anchor, a, columns, tags, plan, place):  # type: ignore[no-untyped-def]
    """Apply all updates of a plan to theta [rows, columns], see `update_lowrank_rows`."""
    update_lowrank_rows(theta, anchor, a, columns, tags, plan, place, 0, theta.shape[0])


@njit(cache=True, nogil=True, parallel=True)
def update_lowrank_parallel(theta, anchor, a, columns, tags, plan, place):  # type: ignore[no-untyped-def]
    """Run `update_lowrank` on all threads, some rows at a time."""
    rows = max(1, PIECE // max(1, theta.shape[1]))
    for piece in prange((theta.shape[0] + rows - 1) // rows):
        first = piece * rows
        last = min(theta.shape[0], first + rows)
        update_lowrank_rows(theta, anchor, a, columns, tags, plan, place, first, last)


# ---------------------------------------------------------------------------------------------- fingerprint


@njit(cache=True, nogil=True)
def mix_piece(bits, at0, at1):  # type: ignore[no-untyped-def]
    """Return the two sums (uint64) of the mixed elements of ``bits`` [n], whose first is at ``at0`` and ``at1``."""
    sum0, sum1 = _U(0), _U(0)
    for i in range(bits.size):
        value = _U(bits[i])
        x, y = value + at0, value + at1
        x = (x ^ (x >> _U(30))) * _SPLIT_A
        y = (y ^ (y >> _U(33))) * _MURMUR_A
        x = (x ^ (x >> _U(27))) * _SPLIT_B
        y = (y ^ (y >> _U(33))) * _MURMUR_B
        sum0 += x ^ (x >> _U(31))
        sum1 += y ^ (y >> _U(33))
        at0 += _STEP0
        at1 += _STEP1
    return sum0, sum1


@njit(cache=True, nogil=True)
def mix_task(sums, bits, key0, key1, start, stride, task):  # type: ignore[no-untyped-def]
    """Write the sums of piece ``task`` of ``bits`` [rows, n] into ``sums[task]``; the pieces run along rows."""
    pieces = (bits.shape[1] + PIECE - 1) // PIECE
    row, low = task // pieces, task % pieces * PIECE
    index = _U(start + row * stride + low)
    part = bits[row, low : low + PIECE]
    sums[task, 0], sums[task, 1] = mix_piece(part, key0 + index * _STEP0, key1 + index * _STEP1)


@njit(cache=True, nogil=True)
def mix(sums, bits, key0, key1, start, stride):  # type: ignore[no-untyped-def]
    """Write the sums of every piece of ``bits`` [rows, n] into ``sums`` (uint64 [pieces, 2])."""
    for task in range(sums.shape[0]):
        mix_task(sums, bits, key0, key1, start, stride, task)


@njit(cache=True, nogil=True, parallel=True)
def mix_parallel(sums, bits, key0, key1, start, stride):  # type: ignore[no-untyped-def]
    """Run `mix` on all threads, a piece at a time."""
    for task in prange(sums.shape[0]):
        mix_task(sums, bits, key0, key1, start, stride, task)
