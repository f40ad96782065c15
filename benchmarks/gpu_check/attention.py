"""A decode step of one layer's attention in five ways; bytes of keys and values over the copy bandwidth.

A dry run computes in float32: Triton's interpreter multiplies bfloat16 operands of a dot as bit patterns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.gpu_check.check import Check
from seedtune.engines.transformers.cpu_kernels.attention import AttentionOptions
from seedtune.engines.transformers.decoding import slot_attention
from seedtune.engines.transformers.decoding.slot_attention import Decode
from seedtune.engines.transformers.decoding.slot_cache import SlotCache, SlotLayer

HEADS, KV_HEADS, ROOM, PAGE = 12, 2, 768, 256
"""Of Qwen2.5-1.5B; positions of a slot; positions of a page, as FlashAttention 2 takes them."""
CLOSE = 0.03
"""How far outputs in bfloat16 may be from today's."""


@dataclass
class Rows:
    """One query of each row, and caches in the order of today's (``layer``) and of most kernels (slots, time, …)."""

    query: torch.Tensor
    layer: SlotLayer
    keys: torch.Tensor
    values: torch.Tensor
    used: int
    filled: torch.Tensor
    """(rows,) positions to attend to: all the same, ``used``."""
    scale: float


def run(check: Check) -> None:
    """Measure every way at several numbers of rows."""
    for rows in check.pick((32, 200, 1000), (3,)):
        _compare(check, rows)
        check.release()


def _compare(check: Check, rows: int) -> None:
    dim, used = check.pick((128, 356), (16, 37))
    like: dict[str, Any] = {"device": check.device, "dtype": check.pick(torch.bfloat16, torch.float32)}
    q = torch.randn(rows, HEADS, dim, **like)
    k, v = (torch.randn(rows, KV_HEADS, dim, **like) for _ in range(2))
    layer = SlotLayer(SlotCache(rows, ROOM, compiled=False))
    layer.lazy_initialization(k[:1].transpose(0, 1)[None], v[:1].transpose(0, 1)[None])
    layer.keys.normal_()
    layer.values.normal_()
    options, now = AttentionOptions(dim**-0.5, 0, 0.0), Decode(torch.full((rows,), used - 1, device=check.device), used)

    def today() -> torch.Tensor:
        return slot_attention._decode(layer, q, k, v, now, options)

    expected = today().float()  # and this position's keys and values are in the cache
    keys, values = layer.keys.permute(0, 3, 1, 2).contiguous(), layer.values.transpose(1, 2).contiguous()
    filled = torch.full((rows,), used, device=check.device, dtype=torch.int32)
    given = Rows(q, layer, keys, values, used, filled, options.scaling)
    ways: dict[str, Callable[[], torch.Tensor]] = {"today": today}
    ways |= {way.__name__.strip("_"): lambda way=way: way(given) for way in (_flash, _paged, _one_kernel)}
    for name, work in ways.items():
        with check.attempt(f"attention {rows} rows, {name}: us", needed=name not in ("flash", "paged")):
            off = float((work().float() - expected).abs().max())
            seconds = check.device_seconds(work, 5)
            share = rows * used * 2 * KV_HEADS * dim * q.element_size() / seconds / check.copy_rate
            note = f"{share:.2g} of copy bandwidth, off by {off:.1e}"
            check.say(f"attention {rows} rows, {name}: us", seconds * 1e6, note, wrong=not off < CLOSE)


def _flash(given: Rows) -> torch.Tensor:
    """torch's FlashAttention over slots, with the filled length of each."""
    rows, _, dim = given.query.shape
    keys, values = (x.view(rows * ROOM, KV_HEADS, dim) for x in (given.keys, given.values))
    starts = torch.arange(rows + 1, device=keys.device, dtype=torch.int32)
    operation = torch.ops.aten._flash_attention_forward
    inputs = (given.query, keys, values, starts, starts * ROOM, 1, ROOM, 0.0, False, False)
    found: torch.Tensor = operation(*inputs, scale=given.scale, seqused_k=given.filled)[0]
    return found


def _paged(given: Rows) -> torch.Tensor:
    """torch's `varlen_attn` over pages."""
    from torch.nn.attention.varlen import varlen_attn

    rows, _, dim = given.query.shape
    keys, values = (x.view(-1, PAGE, KV_HEADS, dim) for x in (given.keys, given.values))
    starts = torch.arange(rows + 1, device=keys.device, dtype=torch.int32)
    pages = torch.arange(len(keys), device=keys.device, dtype=torch.int32).view(rows, -1)
    options: dict[str, Any] = {"scale": given.scale, "enable_gqa": True, "seqused_k": given.filled}
    found: torch.Tensor = varlen_attn(given.query, keys, values, starts, None, 1, ROOM, block_table=pages, **options)
    return found


def _one_kernel(given: Rows) -> torch.Tensor:
    """One plain Triton kernel."""
    q, keys, values = given.query, given.keys, given.values
    out, (rows, heads, dim), kv_heads = torch.empty_like(q), q.shape, keys.shape[2]
    numbers = (given.filled, given.scale, keys.stride(0), keys.stride(1))
    attend[rows, kv_heads](out, q, keys, values, *numbers, GROUP=heads // kv_heads, DIM=dim, TIME=64)
    return out


@triton.jit
def attend(out, q, keys, values, filled, scale, slot, step, GROUP: tl.constexpr, DIM: tl.constexpr, TIME: tl.constexpr):
    """Attention of a row and a head of keys, a program each; caches (slots, time, heads, dim), 16 rows of queries."""
    row, head = tl.program_id(0), tl.program_id(1)
    count, heads = tl.load(filled + row), tl.num_programs(1) * GROUP
    g, d = tl.arange(0, 16), tl.arange(0, DIM)
    place = (row * heads + head * GROUP + g[:, None]) * DIM + d[None, :]
    query = tl.load(q + place, mask=g[:, None] < GROUP, other=0.0)
    top, mass = tl.full((16,), -float("inf"), tl.float32), tl.zeros((16,), tl.float32)
    total = tl.zeros((16, DIM), tl.float32)
    base = row.to(tl.int64) * slot + head * DIM
    for first in range(0, count, TIME):
        t = first + tl.arange(0, TIME)
        at = base + t[:, None] * step + d[None, :]
        k = tl.load(keys + at, mask=t[:, None] < count, other=0.0)
        scores = tl.where(t[None, :] < count, tl.dot(query, tl.trans(k)) * scale, -float("inf"))
        newest = tl.maximum(top, tl.max(scores, 1))
        weights, keep = tl.exp(scores - newest[:, None]), tl.exp(top - newest)
        v = tl.load(values + at, mask=t[:, None] < count, other=0.0)
        total = total * keep[:, None] + tl.dot(weights.to(v.dtype), v)
        mass, top = mass * keep + tl.sum(weights, 1), newest
    tl.store(out + place, (total / mass[:, None]).to(query.dtype), mask=g[:, None] < GROUP)
