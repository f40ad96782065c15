"""The Triton bodies behind `seedtune.numerics.kernels.gpu`: no checks, one program per block of elements.

Importing this module imports triton, which decides at that moment (``TRITON_INTERPRET``) whether the functions are
compiled or interpreted; `seedtune.numerics.kernels.gpu` imports it on first use.

Why the bits are those of the numpy references:

* noise is integer arithmetic and one look-up, see `seedtune.numerics.noise`;
* every kernel is launched with ``enable_fp_fusion=False``: the compiler would otherwise contract ``a * b + c`` into a
  fused multiply-add, which rounds once where the references round twice. Divisions, roots and the float32 modes that
  GPUs approximate are not used, and subnormals are kept (no ``.ftz`` in the generated code, which a test asserts);
* sums over terms stay in one register per element and run in the order of the terms;
* 16-bit floats are read and written as integers and rounded by `seedtune.numerics.rounding`'s integer arithmetic.

Costs: bytes are counted, operations are instructions per element in the machine code that the compiler makes for sm_90
(disassembled, not run), and bounds follow from an H100 SXM's data sheet, not from a measurement. It moves 3.35e12 bytes
and issues 132 SMs * 128 lanes * 1.7 GHz = 2.9e13 instructions a second, half as many for either integer pipe: 35
instructions in the time of 4 bytes. A normal takes about 19 of them: 7 for Philox (per block of eight, 20 wide products
and 20 three-input XORs), 5 to extract the code and mirror the half table, 2 to address and 1 to load, the rest round
keys and counters. No data sheet states the rate of scattered loads that hit the first-level cache; the bounds
below need four a cycle and SM.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from seedtune.numerics import fingerprint as reference
from seedtune.numerics import noise, rounding
from seedtune.numerics.kernels.gpu_rounding import nearest, stochastic, widen

LANES = tl.constexpr(noise.LANES)
M0, M1 = tl.constexpr(noise.PHILOX_M0), tl.constexpr(noise.PHILOX_M1)
W0, W1 = tl.constexpr(noise.PHILOX_W0), tl.constexpr(noise.PHILOX_W1)
ROUNDS = tl.constexpr(noise.PHILOX_ROUNDS)
ROUNDING_TAG = tl.constexpr(int(noise.ROUNDING) << 24)
SUBSPACE_TAG = tl.constexpr(int(noise.SUBSPACE) << 24)
SHARED_TAG = tl.constexpr(int(noise.SHARED) << 24)
HALF_TABLE = tl.constexpr(noise.CODES // 2 - 1)

SIGN = tl.constexpr(rounding.SIGN)

STEP0, STEP1 = tl.constexpr(reference.STEP0), tl.constexpr(reference.STEP1)
SPLIT_A, SPLIT_B = tl.constexpr(reference.SPLITMIX_A), tl.constexpr(reference.SPLITMIX_B)
MURMUR_A, MURMUR_B = tl.constexpr(reference.MURMUR_A), tl.constexpr(reference.MURMUR_B)

# Integers passed without specialisation: specialising on their values would compile a kernel for every address.
WORDS = ["first", "k0", "k1", "tag", "pair", "generation"]

# ---------------------------------------------------------------------------------------------- noise


@triton.jit
def philox(block, tag, pair, generation, k0, k1):
    """Return four words of every block (int64, any shape); all other arguments are scalar uint32."""
    c0, c1 = block.to(tl.uint32), (block >> 32).to(tl.uint32) | tag
    c2, c3 = pair, generation
    for _ in tl.static_range(ROUNDS):
        product0, product1 = c0.to(tl.uint64) * M0, c2.to(tl.uint64) * M1
        c0, c1 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0, product1.to(tl.uint32)
        c2, c3 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1, product0.to(tl.uint32)
        k0, k1 = k0 + W0, k1 + W1
    return c0, c1, c2, c3


@triton.jit
def spread(w0, w1, w2, w3, SHAPE: tl.constexpr):
    """Return the eight codes of every block in the order of the elements, uint32 of this shape.

    A code is the high half of its word; the bits below it are kept, which saves masking them off. A thread keeps
    the eight lanes of its blocks, which are neighbours in memory: 16 bytes of a 16-bit type.
    """
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))  # [..., 2, 2], word 2 i + j
    return tl.reshape(tl.join(words << 16, words), SHAPE)


@triton.jit
def quantile(table, code):
    """Return normals of codes. The upper half of the table mirrors the lower, so 128 KB suffice, which stay in L1."""
    upper = (code.to(tl.int32, bitcast=True) >> 31).to(tl.uint32, bitcast=True)  # all ones in the upper half
    place = ((code >> 16) ^ upper) & HALF_TABLE
    low = tl.load(table + place, eviction_policy="evict_last").to(tl.uint32, bitcast=True)
    return (low ^ (code & SIGN)).to(tl.float32, bitcast=True)


@triton.jit
def span(piece, n, SKIP: tl.constexpr, BLOCKS: tl.constexpr):
    """Return the positions of a program's run of whole blocks: the first, offsets from it, and which of them exist.

    The first block begins SKIP elements before position 0. Positions are 64 bits, offsets 32.
    """
    low = piece.to(tl.int64) * (BLOCKS * LANES) - SKIP
    local = tl.arange(0, BLOCKS * LANES)
    inside = local < tl.minimum(n - low, BLOCKS * LANES).to(tl.int32)
    if SKIP > 0:
        inside = inside & (local >= tl.where(piece == 0, SKIP, 0))
    return low, local, inside


@triton.jit
def blocks_of(piece, first, BLOCKS: tl.constexpr):
    """Return the indices of a program's blocks of noise, int64 [BLOCKS]."""
    return first + piece.to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)


@triton.jit(do_not_specialize=WORDS)
def fill(out, table, terms, n, pieces, first, k0, k1, tag, SKIP: tl.constexpr, BLOCKS: tl.constexpr):
    """Write normals into ``out`` [T, n], row t at (generation, pair) = ``terms[t, :2]``; T * pieces programs.

    Writes 4 bytes per element, 23 operations. Bound by memory: 8.4e11 elements a second on an H100.
    """
    row, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    generation, pair = tl.load(terms + 3 * row).to(tl.uint32), tl.load(terms + 3 * row + 1).to(tl.uint32)
    block = blocks_of(piece, first, BLOCKS)
    w0, w1, w2, w3 = philox(block, tag.to(tl.uint32), pair, generation, k0.to(tl.uint32), k1.to(tl.uint32))
    low, local, inside = span(piece, n, SKIP, BLOCKS)
    normals = quantile(table, spread(w0, w1, w2, w3, (BLOCKS * LANES,)))
    tl.store(out + row.to(tl.int64) * n + low + local, normals, mask=inside)


@triton.jit
def deal(block, generation, k0, k1, SUBSPACES: tl.constexpr, SHAPE: tl.constexpr):
    """Return `seedtune.numerics.noise.subspaces_of` the elements of every block in a generation, uint32 of SHAPE."""
    w0, w1, w2, w3 = philox(block, SUBSPACE_TAG, generation * 0, generation, k0, k1)
    return ((spread(w0, w1, w2, w3, SHAPE) >> 16) * SUBSPACES) >> 16


@triton.jit(do_not_specialize=WORDS)
def keep_rows(
    out, terms, rows, pieces, first, k0, k1,
    RANK: tl.constexpr, SUBSPACES: tl.constexpr, SKIP: tl.constexpr, BLOCKS: tl.constexpr
):  # fmt: skip
    """Zero the rows of factors [T, rows * RANK] outside their pairs' subspaces; T * pieces programs.

    Writes 4 bytes for every number outside; small compared with drawing the factors.
    """
    t, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    generation, pair = tl.load(terms + 3 * t).to(tl.uint32), tl.load(terms + 3 * t + 1).to(tl.uint32)
    block, key0, key1 = blocks_of(piece, first, BLOCKS), k0.to(tl.uint32), k1.to(tl.uint32)
    low, local, inside = span(piece, rows, SKIP, BLOCKS)
    foreign = deal(block, generation, key0, key1, SUBSPACES, (BLOCKS * LANES,)) != pair % SUBSPACES
    row = (t.to(tl.int64) * rows + low + local) * RANK
    for k in range(RANK):
        tl.store(out + row + k, tl.zeros((BLOCKS * LANES,), tl.float32), mask=inside & foreign)


# ---------------------------------------------------------------------------------------------- perturb


@triton.jit(do_not_specialize=WORDS)
def perturb(
    out, weights, table, n, sigma, first, k0, k1, tag, pair, generation,
    WEIGHTS: tl.constexpr, OUT: tl.constexpr, DRAW: tl.constexpr, SUBSPACES: tl.constexpr, SKIP: tl.constexpr,
    BLOCKS: tl.constexpr
):  # fmt: skip
    """Write ``out = nearest(weights + sigma * noise)`` in one pass.

    Reads the weights once and writes ``out`` once, 16 bytes per thread at a time: 4 bytes per element for 16-bit types,
    6 for float32 to 16 bits, 8 for float32. 24 operations for float32, 28 for bfloat16, of which 5 round. Bound by
    memory: 8.4e11, 5.6e11 and 4.2e11 elements a second on an H100; with 16 bits instructions take almost as long.
    Subspaces add one more Philox, 12 operations, per element.
    """
    piece = tl.program_id(0)
    low, local, inside = span(piece, n, SKIP, BLOCKS)
    value = widen(tl.load(weights + low + local, mask=inside, other=0, eviction_policy="evict_first"), WEIGHTS)
    if DRAW:
        block = blocks_of(piece, first, BLOCKS)
        key0, key1 = k0.to(tl.uint32), k1.to(tl.uint32)
        w0, w1, w2, w3 = philox(block, tag.to(tl.uint32), pair.to(tl.uint32), generation.to(tl.uint32), key0, key1)
        moved = value + sigma * quantile(table, spread(w0, w1, w2, w3, (BLOCKS * LANES,)))
        if SUBSPACES > 1:
            ids = deal(block, generation.to(tl.uint32), key0, key1, SUBSPACES, (BLOCKS * LANES,))
            moved = tl.where(ids == pair.to(tl.uint32) % SUBSPACES, moved, value)
        value = moved
    tl.store(out + low + local, nearest(value, OUT), mask=inside, eviction_policy="evict_first")


# ---------------------------------------------------------------------------------------------- updates
#
# ``steps`` is int32 [U, 6]: an update's first term, the term after its last, its generation, whether it decays,
# 1 - l2 and l1 (float32 bits). ``terms`` is int32 [T, 3]: generation, pair, weight (float32 bits).


@triton.jit
def single(word):
    """Return 32-bit words, of any shape, as the float32 numbers that they hold."""
    return word.to(tl.float32, bitcast=True)


@triton.jit
def pull(x, anchor, steps, u):
    """Apply the decay of update ``u`` to x, if it has one. A factor 1 - l2 = 1 and l1 = 0 change no bit of d."""
    keep, l1 = single(tl.load(steps + 6 * u + 4)), single(tl.load(steps + 6 * u + 5))
    d = (x - anchor) * keep
    size = tl.abs(d) - l1
    size = tl.where(size <= 0.0, 0.0, size)  # not a maximum: NaN must stay
    d = single((d.to(tl.uint32, bitcast=True) & SIGN) | size.to(tl.uint32, bitcast=True))
    return tl.where(tl.load(steps + 6 * u + 3) != 0, anchor + d, x)


@triton.jit(do_not_specialize=[*WORDS, "updates"])
def update_gaussian(
    theta, anchor, table, steps, terms, updates, n, first, k0, k1,
    KIND: tl.constexpr, ANCHOR: tl.constexpr, DECAY: tl.constexpr, SUBSPACES: tl.constexpr, SKIP: tl.constexpr,
    BLOCKS: tl.constexpr
):  # fmt: skip
    """All updates of a block of elements with gaussian noise, theta read and written once.

    Moves 4 (16-bit) or 8 (float32) bytes an element, plus the anchor if there is a decay. 22 operations an element and
    term, 25 an update for stochastic rounding, 8 for a decay. From two terms on bound by instructions: about 1e12
    elements and terms a second on an H100, so 7e9 weights and 32 terms take about 0.2 s. Subspaces add one more Philox
    a generation and two operations a term.
    """
    piece = tl.program_id(0)
    low, local, inside = span(piece, n, SKIP, BLOCKS)
    block = blocks_of(piece, first, BLOCKS)
    key0, key1 = k0.to(tl.uint32), k1.to(tl.uint32)
    x = widen(tl.load(theta + low + local, mask=inside, other=0), KIND)
    base = x
    if DECAY:
        base = widen(tl.load(anchor + low + local, mask=inside, other=0), ANCHOR)
    ids = tl.zeros((BLOCKS * LANES,), tl.uint32)
    for u in range(updates):
        total = tl.zeros((BLOCKS * LANES,), tl.float32)
        for t in range(tl.load(steps + 6 * u), tl.load(steps + 6 * u + 1)):
            generation, pair = tl.load(terms + 3 * t).to(tl.uint32), tl.load(terms + 3 * t + 1).to(tl.uint32)
            w0, w1, w2, w3 = philox(block, 0, pair, generation, key0, key1)
            part = single(tl.load(terms + 3 * t + 2)) * quantile(table, spread(w0, w1, w2, w3, (BLOCKS * LANES,)))
            if SUBSPACES > 1:
                # Consecutive terms of one generation share its subspaces.
                if (t == 0) | (tl.load(terms + 3 * t) != tl.load(terms + 3 * tl.maximum(t - 1, 0))):
                    ids = deal(block, generation, key0, key1, SUBSPACES, (BLOCKS * LANES,))
                total = tl.where(ids == pair % SUBSPACES, total + part, total)
            else:
                total += part
        x = x + total
        if DECAY:
            x = pull(x, base, steps, u)
        if KIND != "float32":
            generation = tl.load(steps + 6 * u + 2).to(tl.uint32)
            w0, w1, w2, w3 = philox(block, ROUNDING_TAG, generation * 0, generation, key0, key1)
            x = widen(stochastic(x, spread(w0, w1, w2, w3, (BLOCKS * LANES,)), KIND), KIND)
    tl.store(theta + low + local, nearest(x, KIND), mask=inside)  # exact: x is a number of theta's type by now


@triton.jit
def tile_codes(row, left, tag, pair, generation, k0, k1, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return codes of a stream for a tile whose rows begin at the elements ``row`` [ROWS, 1] + ``left``."""
    if ALIGNED:
        block = ((row + left) >> 3) + tl.arange(0, COLS // LANES)[None, :]
        w0, w1, w2, w3 = philox(block, tag, pair, generation, k0, k1)
        codes = spread(w0, w1, w2, w3, (ROWS, COLS))
    else:
        # Every row begins at its own lane, so every element draws its own block: eight times the work, once per update.
        element = row + left + tl.arange(0, COLS)[None, :]
        w0, w1, w2, w3 = philox(element >> 3, tag, pair, generation, k0, k1)
        lane = (element & 7).to(tl.uint32)
        word = tl.where(lane < 4, tl.where(lane < 2, w0, w1), tl.where(lane < 6, w2, w3))
        codes = word << (((lane & 1) ^ 1) << 4)
    return codes


@triton.jit
def rounded(
    x, row, left, steps, u, k0, k1, KIND: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """Round a tile of the sums of update ``u`` to theta's 16-bit type, and return it as float32."""
    generation = tl.load(steps + 6 * u + 2).to(tl.uint32)
    code = tile_codes(row, left, ROUNDING_TAG, generation * 0, generation, k0, k1, ALIGNED, ROWS, COLS)
    return widen(stochastic(x, code, KIND), KIND)


# ``b`` is declared unaligned: otherwise its loads would be widened to 16 bytes per thread and shuffled for every term.
@triton.jit(do_not_specialize=[*WORDS, "updates"], do_not_specialize_on_alignment=["b"])
def update_lowrank(
    theta, anchor, a, b, steps, terms, updates, rows, cols, stride, first, k0, k1, RANK: tl.constexpr,
    KIND: tl.constexpr, ANCHOR: tl.constexpr, DECAY: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """All updates of a tile of theta [rows, cols] with factors ``a`` [T * r, rows] and ``b`` [T * r, cols].

    Theta is rows of a tensor with ``stride`` columns, its element (0, 0) the tensor's ``first``. Moves 4 (16-bit) or
    8 (float32) bytes an element, plus the anchor if there is a decay; for each term and rank a tile of 8 x 512 reads
    520 numbers from the caches for its 4096 elements. A thread holds 8 x 4 elements, so that of its 3.3 operations an
    element, term and rank 2 are the product and the sum; 30 an update for stochastic rounding. Bound by memory up to
    about 10 terms * rank in 16 bits (8.4e11 elements a second on an H100), then by instructions (9e12 elements, terms
    and ranks a second): 7e9 weights and 32 terms take about 0.03 s.
    """
    across = tl.cdiv(cols, COLS)
    left = (tl.program_id(0) % across) * COLS
    i = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    j = left + tl.arange(0, COLS)
    inside = (i < rows)[:, None] & (j < cols)[None, :]
    at = i.to(tl.int64)[:, None] * cols + j[None, :]
    x = widen(tl.load(theta + at, mask=inside, other=0), KIND)
    base = x
    if DECAY:
        base = widen(tl.load(anchor + at, mask=inside, other=0), ANCHOR)
    for u in range(updates):
        total = tl.zeros((ROWS, COLS), tl.float32)
        for q in range(tl.load(steps + 6 * u) * RANK, tl.load(steps + 6 * u + 1) * RANK):
            weight, wide = single(tl.load(terms + 3 * (q // RANK) + 2)), tl.cast(q, tl.int64)
            scale = weight * tl.load(a + wide * rows + i, mask=i < rows, other=0.0)
            total += scale[:, None] * tl.load(b + wide * cols + j, mask=j < cols, other=0.0)[None, :]
        x = x + total
        if DECAY:
            x = pull(x, base, steps, u)
        if KIND != "float32":
            row = first + i.to(tl.int64)[:, None] * stride
            x = rounded(x, row, left, steps, u, k0.to(tl.uint32), k1.to(tl.uint32), KIND, ALIGNED, ROWS, COLS)
    tl.store(theta + at, nearest(x, KIND), mask=inside)


@triton.jit(do_not_specialize=[*WORDS, "updates", "shared_noise"], do_not_specialize_on_alignment=["b"])
def update_flipout(
    theta, anchor, table, a, b, steps, terms, updates, rows, cols, stride, first, k0, k1, shared_noise,
    KIND: tl.constexpr, ANCHOR: tl.constexpr, DECAY: tl.constexpr, ALIGNED: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr
):  # fmt: skip
    """As `update_lowrank`, with signs ``a`` [T, rows] and ``b`` [T, cols] of terms that are in runs.

    A term costs what it costs there at rank 1; every run draws one more normal, of 23 operations, an element.
    """
    across = tl.cdiv(cols, COLS)
    left = (tl.program_id(0) % across) * COLS
    i = (tl.program_id(0) // across) * ROWS + tl.arange(0, ROWS)
    j = left + tl.arange(0, COLS)
    inside = (i < rows)[:, None] & (j < cols)[None, :]
    at, row = i.to(tl.int64)[:, None] * cols + j[None, :], first + i.to(tl.int64)[:, None] * stride
    key0, key1 = k0.to(tl.uint32), k1.to(tl.uint32)
    x = widen(tl.load(theta + at, mask=inside, other=0), KIND)
    base = x
    if DECAY:
        base = widen(tl.load(anchor + at, mask=inside, other=0), ANCHOR)
    for u in range(updates):
        total, q = tl.zeros((ROWS, COLS), tl.float32), tl.zeros((ROWS, COLS), tl.float32)
        start, end = tl.load(steps + 6 * u), tl.load(steps + 6 * u + 1)
        for t in range(start, end):
            generation = tl.load(terms + 3 * t).to(tl.uint32)
            group = tl.load(terms + 3 * t + 1).to(tl.uint32) % shared_noise.to(tl.uint32)
            weight, wide = single(tl.load(terms + 3 * t + 2)), tl.cast(t, tl.int64)
            scale = weight * tl.load(a + wide * rows + i, mask=i < rows, other=0.0)
            q += scale[:, None] * tl.load(b + wide * cols + j, mask=j < cols, other=0.0)[None, :]
            after = tl.minimum(t + 1, end - 1)
            other = tl.load(terms + 3 * after + 1).to(tl.uint32) % shared_noise.to(tl.uint32)
            if (t == end - 1) | (tl.load(terms + 3 * after).to(tl.uint32) != generation) | (other != group):
                code = tile_codes(row, left, SHARED_TAG, group, generation, key0, key1, ALIGNED, ROWS, COLS)
                total += q * quantile(table, code)
                q = tl.zeros((ROWS, COLS), tl.float32)
        x = x + total
        if DECAY:
            x = pull(x, base, steps, u)
        if KIND != "float32":
            x = rounded(x, row, left, steps, u, key0, key1, KIND, ALIGNED, ROWS, COLS)
    tl.store(theta + at, nearest(x, KIND), mask=inside)


# ---------------------------------------------------------------------------------------------- fingerprint


@triton.jit(do_not_specialize=["at0", "at1"])
def mix(sums, bits, n, at0, at1, MASK: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Both lanes of a program's STEPS * BLOCK elements into ``sums`` [programs, 2] (int64, mod 2**64).

    Reads 2 or 4 bytes an element and writes next to nothing; 60 operations, mostly for the four 64-bit products. Bound
    by integer instructions: about 4e11 elements a second on an H100, 0.8e12 (16 bits) or 1.6e12 (float32) bytes.
    """
    start = tl.program_id(0).to(tl.int64) * (STEPS * BLOCK)
    local = tl.arange(0, BLOCK)
    at0 = at0.to(tl.uint64) + local.to(tl.uint64) * STEP0
    at1 = at1.to(tl.uint64) + local.to(tl.uint64) * STEP1
    sum0, sum1 = tl.zeros((BLOCK,), tl.uint64), tl.zeros((BLOCK,), tl.uint64)
    for step in range(STEPS):
        low = start + step * BLOCK
        inside = local < tl.minimum(n - low, BLOCK).to(tl.int32)
        value = (tl.load(bits + low + local, mask=inside, other=0).to(tl.uint32) & MASK).to(tl.uint64)
        x, y = value + (at0 + low.to(tl.uint64) * STEP0), value + (at1 + low.to(tl.uint64) * STEP1)
        x, y = (x ^ (x >> 30)) * SPLIT_A, (y ^ (y >> 33)) * MURMUR_A
        x, y = (x ^ (x >> 27)) * SPLIT_B, (y ^ (y >> 33)) * MURMUR_B
        sum0 += tl.where(inside, x ^ (x >> 31), 0)
        sum1 += tl.where(inside, y ^ (y >> 33), 0)
    tl.store(sums + 2 * tl.program_id(0), tl.sum(sum0).to(tl.int64))
    tl.store(sums + 2 * tl.program_id(0) + 1, tl.sum(sum1).to(tl.int64))
