"""The Triton bodies behind `layer_launches`: sums in float32, results in the type of what they are stored in.

Importing this module imports triton, which decides at that moment (``TRITON_INTERPRET``) whether they are interpreted.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

NORM, GATE, READ = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""What a product's inputs are: the norm of a row, its gated halves, or what is there already."""


@triton.jit
def product_inputs(
    out,
    x,
    weight,
    b,
    pairs,
    scales,
    eps,
    width,
    out_step,
    x_step,
    columns,
    pad,
    KIND: tl.constexpr,
    MEMBERS: tl.constexpr,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    TERMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write a row's inputs (width), and with MEMBERS its further ones: PARTS groups of ``columns``, and ``pad`` zeros.

    Of each group only the columns of the row's own pair are not 0: its scale times Bᵀ·inputs.
    """
    row = tl.program_id(0)
    d, j = tl.arange(0, BLOCK), tl.arange(0, TERMS)
    own_out, own_x = out + row.to(tl.int64) * out_step, x + row.to(tl.int64) * x_step
    factor = 1.0
    if KIND == NORM:
        squares = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, width, BLOCK):
            at = first + d
            v = tl.load(own_x + at, mask=at < width, other=0.0).to(tl.float32)
            squares += v * v
        factor = 1.0 / tl.sqrt(tl.sum(squares, 0) / width + eps)
    dots = tl.zeros((TERMS,), tl.float32)
    pair = row
    if MEMBERS:
        pair = tl.load(pairs + row).to(tl.int32)
    for first in range(0, width, BLOCK):
        at = first + d
        inside = at < width
        v = tl.load(own_x + at, mask=inside, other=0.0)
        if KIND == NORM:
            w = tl.load(weight + at, mask=inside, other=0.0)
            v = (w * (v.to(tl.float32) * factor).to(v.dtype)).to(v.dtype)
        if KIND == GATE:
            up = tl.load(own_x + width + at, mask=inside, other=0.0)
            gate = v.to(tl.float32)
            v = ((gate / (1.0 + tl.exp(-gate))).to(v.dtype) * up).to(v.dtype)
        if KIND != READ:
            tl.store(own_out + at, v, mask=inside)
        if MEMBERS:
            place = (pair.to(tl.int64) * (PARTS * RANK) + j[:, None]) * width + at[None, :]
            factors = tl.load(b + place, mask=(j[:, None] < PARTS * RANK) & inside[None, :], other=0.0)
            dots += tl.sum(factors.to(tl.float32) * v.to(tl.float32)[None, :], 1)
    if MEMBERS:
        to = own_out + width
        _write_further(to, dots * tl.load(scales + row), pair, columns, pad, PARTS, RANK, TERMS, COLUMNS)


@triton.jit
def _write_further(
    to,
    terms,
    pair,
    columns,
    pad,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    TERMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write a row's terms in the columns of its pair, and zeros in all others."""
    j, c = tl.arange(0, TERMS), tl.arange(0, COLUMNS)
    rank = j % RANK
    own = c[None, :] == (pair * RANK + rank)[:, None]
    written = (j[:, None] < PARTS * RANK) & (c[None, :] < columns) & ((c % RANK)[None, :] == rank[:, None])
    place = (j // RANK)[:, None] * columns + c[None, :]
    tl.store(to + place, tl.where(own, terms[:, None], 0.0).to(to.dtype.element_ty), mask=written)
    rest = tl.arange(0, 8)
    tl.store(to + PARTS * columns + rest, tl.zeros((8,), to.dtype.element_ty), mask=rest < pad)


@triton.jit
def turn_and_append(
    q,
    qkv,
    cos,
    sin,
    q_norm,
    k_norm,
    keys,
    values,
    places,
    eps,
    largest,
    time,
    step,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    NORMED: tl.constexpr,
):
    """Rotate a head of queries or keys (with NORMED their norm), and write it, or a head of values, where it belongs.

    Values are kept finite: leftovers of a broken member in a slot are weighted by 0, and 0·NaN is NaN.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    d = tl.arange(0, HALF)
    inside = d < DIM // 2
    own = qkv + row * step + head * DIM
    low, high = tl.load(own + d, mask=inside, other=0.0), tl.load(own + DIM // 2 + d, mask=inside, other=0.0)
    place = tl.load(places + row)
    if head < HEADS + KV_HEADS:
        a, b = low.to(tl.float32), high.to(tl.float32)
        if NORMED:
            factor = 1.0 / tl.sqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / DIM + eps)
            weight = k_norm
            if head < HEADS:
                weight = q_norm
            a = (tl.load(weight + d, mask=inside, other=0.0) * (a * factor).to(low.dtype)).to(tl.float32)
            b = (tl.load(weight + DIM // 2 + d, mask=inside, other=0.0) * (b * factor).to(low.dtype)).to(tl.float32)
        turned_low, turned_high = _turned(a, b, cos + row * DIM + d, sin + row * DIM + d, inside, DIM)
        if head < HEADS:
            to = q + (row * HEADS + head) * DIM + d
            tl.store(to, turned_low.to(low.dtype), mask=inside)
            tl.store(to + DIM // 2, turned_high.to(low.dtype), mask=inside)
        else:
            to = keys + ((row * KV_HEADS + head - HEADS) * DIM + d) * time + place
            tl.store(to, turned_low.to(low.dtype), mask=inside)
            tl.store(to + (DIM // 2) * time, turned_high.to(low.dtype), mask=inside)
    else:
        to = values + ((row * KV_HEADS + head - HEADS - KV_HEADS) * time + place) * DIM + d
        a, b = low.to(tl.float32), high.to(tl.float32)
        a = tl.minimum(tl.maximum(tl.where(a == a, a, 0.0), -largest), largest)
        b = tl.minimum(tl.maximum(tl.where(b == b, b, 0.0), -largest), largest)
        tl.store(to, a.to(low.dtype), mask=inside)
        tl.store(to + DIM // 2, b.to(low.dtype), mask=inside)


@triton.jit
def _turned(low, high, cos, sin, inside, DIM: tl.constexpr):
    """Rotate the halves of a head by the angles at ``cos`` and ``sin``."""
    cos_low, cos_high = tl.load(cos, mask=inside, other=0.0), tl.load(cos + DIM // 2, mask=inside, other=0.0)
    sin_low, sin_high = tl.load(sin, mask=inside, other=0.0), tl.load(sin + DIM // 2, mask=inside, other=0.0)
    turned_low = low * cos_low.to(tl.float32) - high * sin_low.to(tl.float32)
    turned_high = high * cos_high.to(tl.float32) + low * sin_high.to(tl.float32)
    return turned_low, turned_high


@triton.jit
def attend(
    out,
    q,
    keys,
    values,
    places,
    scale,
    time,
    out_step,
    window,
    softcap,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    CAPPED: tl.constexpr,
    TIME: tl.constexpr,
):
    """Attention of a row's heads that share a head of keys: keys (slots, heads, dim, time), values (…, time, dim)."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    kv_heads = tl.num_programs(1)
    g, d = tl.arange(0, QUERIES), tl.arange(0, WIDTH)
    count = tl.load(places + row).to(tl.int32) + 1
    first_seen = 0
    if window > 0:
        first_seen = tl.maximum(count - window, 0)
    of_head = head * GROUP + g[:, None]
    queries = (g[:, None] < GROUP) & (d[None, :] < DIM)
    query = tl.load(q + (row * kv_heads * GROUP + of_head) * DIM + d[None, :], mask=queries, other=0.0)
    top, mass = tl.full((QUERIES,), -float("inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, WIDTH), tl.float32)
    base = (row * kv_heads + head) * DIM * time
    for first in range(first_seen // TIME * TIME, count, TIME):
        t = first + tl.arange(0, TIME)
        seen = (t < count) & (t >= first_seen)
        there = (d[:, None] < DIM) & seen[None, :]
        k = tl.load(keys + base + d[:, None] * time + t[None, :], mask=there, other=0.0)
        scores = tl.dot(query, k, input_precision="ieee") * scale
        if CAPPED:
            small = tl.exp(-2.0 * tl.abs(scores / softcap))
            size = softcap * (1.0 - small) / (1.0 + small)
            scores = tl.where(scores < 0.0, -size, size)
        scores = tl.where(seen[None, :], scores, -float("inf"))
        newest = tl.maximum(top, tl.max(scores, 1))
        weights, keep = tl.exp(scores - newest[:, None]), tl.exp(top - newest)
        v = tl.load(values + base + t[:, None] * DIM + d[None, :], mask=seen[:, None] & (d[None, :] < DIM), other=0.0)
        total = total * keep[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        mass, top = mass * keep + tl.sum(weights, 1), newest
    to = out + row * out_step + of_head * DIM + d[None, :]
    tl.store(to, (total / mass[:, None]).to(query.dtype), mask=queries)
