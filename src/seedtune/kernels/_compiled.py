"""The numba bodies behind `seedtune.kernels.cpu`: no checks, positional arguments, arrays C contiguous.

All in one file, because numba's cache on disk notices a change only in the file of the function that it
compiled. Indices into arrays are unsigned or plain loop counters: for an index that might be negative numba
adds a test, and the loop does not vectorise.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from seedtune import fingerprint as reference
from seedtune.noise import PHILOX_M0, PHILOX_M1, PHILOX_ROUNDS, PHILOX_W0, PHILOX_W1

PIECE = 1 << 16  # elements one thread takes at a time
CHUNK = 1 << 11  # elements of noise that stay in the first-level cache
TILE = 512  # columns of a low-rank update that do
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
    """Eight 16-bit codes of one block as two 64-bit words, lane 0 lowest.

    Words stay in 64-bit lanes whose upper halves are rubbish: the 32-bit multiplier of a vector unit reads
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
    """Codes of DRAW blocks into ``words[at : at + WORDS]``."""
    k0, k1, tag, pair, generation = where
    for i in range(DRAW):
        low, high = philox(block + _U(i), tag, pair, generation, k0, k1)
        words[at + _U(2 * i)], words[at + _U(2 * i + 1)] = low, high


@njit(cache=True, nogil=True)
def fill(out, table, where, start):  # type: ignore[no-untyped-def]
    here = (_U(where[0]), _U(where[1]), _U(where[2]), _U(where[3]), _U(where[4]))
    # Two draws in turn: the next one is computed while the look-ups of the current one wait for the cache.
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
    for piece in prange((out.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        fill(out[low : low + PIECE], table, where, start + low)


@njit(cache=True, nogil=True)
def fill_rows(out, table, where, columns, row_start, col_start):  # type: ignore[no-untyped-def]
    for row in range(out.shape[0]):
        fill(out[row], table, where, (row_start + row) * columns + col_start)


@njit(cache=True, nogil=True, parallel=True)
def fill_rows_parallel(out, table, where, columns, row_start, col_start):  # type: ignore[no-untyped-def]
    for row in prange(out.shape[0]):
        fill(out[row], table, where, (row_start + row) * columns + col_start)


@njit(cache=True, nogil=True)
def fill_factors(out, table, where, generations, pairs, start):  # type: ignore[no-untyped-def]
    for p in range(out.shape[0]):
        here = (where[0], where[1], where[2], np.int64(pairs[p]), np.int64(generations[p]))
        fill(out[p], table, here, start)


@njit(cache=True, nogil=True, parallel=True)
def fill_factors_parallel(out, table, where, generations, pairs, start):  # type: ignore[no-untyped-def]
    pieces = (out.shape[1] + PIECE - 1) // PIECE
    for task in prange(out.shape[0] * pieces):
        p, low = task // pieces, task % pieces * PIECE
        here = (where[0], where[1], where[2], np.int64(pairs[p]), np.int64(generations[p]))
        fill(out[p, low : low + PIECE], table, here, start + low)


@njit(cache=True, nogil=True)
def perturb_edge(out, centre, sigma, table, where, start):  # type: ignore[no-untyped-def]
    noise = np.empty(out.size, np.float32)
    fill(noise, table, where, start)
    for i in range(out.size):
        out[i] = centre[i] + sigma * noise[i]


@njit(cache=True, nogil=True)
def perturb_whole(out, centre, sigma, table, where, start):  # type: ignore[no-untyped-def]
    """Whole draws from an aligned start, fused: 40 % faster than noise into a buffer first.

    Seam: weights of another dtype need their own version of the four lines that read, add and round once on
    writing.
    """
    here = (_U(where[0]), _U(where[1]), _U(where[2]), _U(where[3]), _U(where[4]))
    words = np.empty(2 * WORDS, np.uint64)
    block, current, position = _U(start >> 3), _U(0), _U(0)
    draw(words, current, block, here)
    for _ in range(out.size // ELEMENTS):
        block += _U(DRAW)
        following = current ^ _U(WORDS)
        draw(words, following, block, here)
        for j in range(WORDS):
            word, i0 = words[current + _U(j)], position + _U(4 * j)
            i1, i2, i3 = i0 + _U(1), i0 + _U(2), i0 + _U(3)
            value0 = centre[i0] + sigma * table[word & _CODE]
            value1 = centre[i1] + sigma * table[(word >> _U(16)) & _CODE]
            value2 = centre[i2] + sigma * table[(word >> _U(32)) & _CODE]
            value3 = centre[i3] + sigma * table[word >> _U(48)]
            out[i0], out[i1], out[i2], out[i3] = value0, value1, value2, value3
        position += _U(ELEMENTS)
        current = following


@njit(cache=True, nogil=True)
def perturb(out, centre, sigma, table, where, start):  # type: ignore[no-untyped-def]
    head = min(-start & 7, out.size)
    tail = head + (out.size - head) // ELEMENTS * ELEMENTS
    perturb_edge(out[:head], centre[:head], sigma, table, where, start)
    perturb_whole(out[head:tail], centre[head:tail], sigma, table, where, start + head)
    perturb_edge(out[tail:], centre[tail:], sigma, table, where, start + tail)


@njit(cache=True, nogil=True, parallel=True)
def perturb_parallel(out, centre, sigma, table, where, start):  # type: ignore[no-untyped-def]
    for piece in prange((out.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        high = min(out.size, low + PIECE)
        perturb(out[low:high], centre[low:high], sigma, table, where, start + low)


# ---------------------------------------------------------------------------------------------- updates


@njit(cache=True, nogil=True)
def add_full(theta, table, where, generations, pairs, weights, start):  # type: ignore[no-untyped-def]
    noise, total = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for low in range(0, theta.size, CHUNK):
        count = min(CHUNK, theta.size - low)
        total[:count] = np.float32(0)
        for p in range(weights.size):
            here = (where[0], where[1], where[2], np.int64(pairs[p]), np.int64(generations[p]))
            fill(noise[:count], table, here, start + low)
            for i in range(count):
                total[i] += weights[p] * noise[i]
        target = theta[low : low + count]
        for i in range(count):
            target[i] += total[i]


@njit(cache=True, nogil=True, parallel=True)
def add_full_parallel(theta, table, where, generations, pairs, weights, start):  # type: ignore[no-untyped-def]
    for piece in prange((theta.size + PIECE - 1) // PIECE):
        low = piece * PIECE
        add_full(theta[low : low + PIECE], table, where, generations, pairs, weights, start + low)


@njit(cache=True, nogil=True)
def add_lowrank_rows(theta, a, columns, weights, first, last):  # type: ignore[no-untyped-def]
    """Rows first..last-1, tile by tile of columns, four terms (added in turn) a pass over a tile."""
    terms, rank, n = columns.shape[0], a.shape[2], theta.shape[1]
    scale, total = np.empty(terms, np.float32), np.empty(TILE, np.float32)
    for left in range(0, n, TILE):
        width = min(TILE, n - left)
        for i in range(first, last):
            for t in range(terms):
                scale[t] = weights[t // rank] * a[t // rank, i, t % rank]
            total[:width] = np.float32(0)
            whole = terms - terms % 4
            for t in range(0, whole, 4):
                s0, s1, s2, s3 = scale[t], scale[t + 1], scale[t + 2], scale[t + 3]
                b0, b1 = columns[t, left : left + width], columns[t + 1, left : left + width]
                b2, b3 = columns[t + 2, left : left + width], columns[t + 3, left : left + width]
                for j in range(width):
                    total[j] = (((total[j] + s0 * b0[j]) + s1 * b1[j]) + s2 * b2[j]) + s3 * b3[j]
            for t in range(whole, terms):
                s0, b0 = scale[t], columns[t, left : left + width]
                for j in range(width):
                    total[j] += s0 * b0[j]
            line = theta[i, left : left + width]
            for j in range(width):
                line[j] += total[j]


@njit(cache=True, nogil=True)
def add_lowrank(theta, a, columns, weights):  # type: ignore[no-untyped-def]
    add_lowrank_rows(theta, a, columns, weights, 0, theta.shape[0])


@njit(cache=True, nogil=True, parallel=True)
def add_lowrank_parallel(theta, a, columns, weights):  # type: ignore[no-untyped-def]
    rows = max(1, PIECE // max(1, theta.shape[1]))
    for piece in prange((theta.shape[0] + rows - 1) // rows):
        first = piece * rows
        add_lowrank_rows(theta, a, columns, weights, first, min(theta.shape[0], first + rows))


# ---------------------------------------------------------------------------------------------- fingerprint


@njit(cache=True, nogil=True)
def mix_piece(bits, at0, at1):  # type: ignore[no-untyped-def]
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
    pieces = (bits.shape[1] + PIECE - 1) // PIECE
    row, low = task // pieces, task % pieces * PIECE
    index = _U(start + row * stride + low)
    part = bits[row, low : low + PIECE]
    sums[task, 0], sums[task, 1] = mix_piece(part, key0 + index * _STEP0, key1 + index * _STEP1)


@njit(cache=True, nogil=True)
def mix(sums, bits, key0, key1, start, stride):  # type: ignore[no-untyped-def]
    for task in range(sums.shape[0]):
        mix_task(sums, bits, key0, key1, start, stride, task)


@njit(cache=True, nogil=True, parallel=True)
def mix_parallel(sums, bits, key0, key1, start, stride):  # type: ignore[no-untyped-def]
    for task in prange(sums.shape[0]):
        mix_task(sums, bits, key0, key1, start, stride, task)
