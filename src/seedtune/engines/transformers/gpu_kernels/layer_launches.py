"""What a decoder layer's decode step computes between its matrix products, a launch each, on CUDA and ROCm devices.

Tensors are float32, float16 or bfloat16; a row's inputs of a product lie in a row of a buffer, with the members'
further inputs behind them (`seedtune.engines.transformers.members.population_linear.Factors`).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seedtune.engines.transformers.cpu_kernels.attention import AttentionOptions

ROUNDED = 8
"""Further inputs are filled up to a multiple, so that rows of 16-bit numbers begin at multiples of 16 bytes."""

MOST_TILE = 4096
"""Numbers of a program's tile of factors; of 8192 registers were spilled on sm_100."""

TIME = 64
"""Positions that attention reads at a time."""


@dataclass(frozen=True, slots=True)
class Further:
    """Members as further inputs: ``b`` (P, parts, r, in), each row's pair (rows,) int64 and scale (rows,) float32."""

    b: Tensor
    pairs: Tensor
    scales: Tensor

    @property
    def columns(self) -> int:
        """How many further inputs each part has."""
        return self.b.shape[0] * self.b.shape[2]


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """Weights (dim,) of the norms of each head's queries and keys, and their ε."""

    queries: Tensor
    keys: Tensor
    eps: float


def further_inputs(parts: int, columns: int) -> int:
    """Return how many columns a buffer has behind its inputs."""
    return -(-parts * columns // ROUNDED) * ROUNDED


def buffer(like: Tensor, rows: int, width: int, further: Further | None) -> Tensor:
    """Return an empty buffer (rows, width and further inputs) in the type of ``like``."""
    more = 0 if further is None else further_inputs(further.b.shape[1], further.columns)
    return like.new_empty(rows, width + more)


def norm(x: Tensor, weight: Tensor, eps: float, further: Further | None) -> Tensor:
    """Return weight·x/√(mean x² + ε) of each row, with its further inputs."""
    out = buffer(x, x.shape[0], x.shape[1], further)
    _inputs("NORM", out, x, weight, eps, x.shape[1], further)
    return out


def gate(x: Tensor, further: Further | None) -> Tensor:
    """Return silu of the first half of each row times its second half, with further inputs."""
    width = x.shape[1] // 2
    out = buffer(x, x.shape[0], width, further)
    _inputs("GATE", out, x, x, 0.0, width, further)
    return out


def add_further(out: Tensor, width: int, further: Further | None) -> None:
    """Write the further inputs of rows whose inputs are there."""
    if further is not None:
        _inputs("READ", out, out, out, 0.0, width, further)


def _inputs(kind: str, out: Tensor, x: Tensor, weight: Tensor, eps: float, width: int, further: Further | None) -> None:
    parts, rank = (1, 1) if further is None else (further.b.shape[1], further.b.shape[2])
    terms, columns = _power(parts * rank), 0 if further is None else further.columns
    members = (x, x, x) if further is None else (further.b, further.pairs, further.scales)
    pad = out.shape[1] - width - parts * columns
    block = min(_power(width), max(16, min(1024, MOST_TILE // terms)))
    numbers = (eps, width, out.stride(0), x.stride(0), columns, pad)
    meta = {"PARTS": parts, "RANK": rank, "TERMS": terms, "COLUMNS": _power(columns), "BLOCK": block}
    which = {"KIND": getattr(_bodies(), kind), "MEMBERS": further is not None}
    _launch("product_inputs", (x.shape[0],), out, x, weight, *members, *numbers, **which, **meta)


def turn_and_append(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    norms: HeadNorms | None,
    cache: tuple[Tensor, Tensor],
    places: Tensor,
    *,
    heads: int,
) -> Tensor:
    """Return rotated queries (rows, heads, dim), and write rotated keys and values at ``places`` (rows,) of the slots.

    ``qkv`` (rows, all heads · dim) holds queries, keys, values; angles are cos and sin (rows, dim); the cache holds
    keys (slots, kv_heads, dim, time) and values (slots, kv_heads, time, dim).
    """
    keys, values = cache
    _, kv_heads, dim, time = keys.shape
    q = qkv.new_empty(qkv.shape[0], heads, dim)
    weights = (qkv, qkv, 0.0) if norms is None else (norms.queries, norms.keys, norms.eps)
    numbers = (weights[2], torch.finfo(qkv.dtype).max, time, qkv.stride(0))
    meta = {"HEADS": heads, "KV_HEADS": kv_heads, "DIM": dim, "HALF": _power(dim // 2), "NORMED": norms is not None}
    grid = (qkv.shape[0], heads + 2 * kv_heads)
    tensors = (q, qkv, *angles, *weights[:2], keys, values, places)
    _launch("turn_and_append", grid, *tensors, *numbers, **meta)
    return q


def attend(out: Tensor, q: Tensor, cache: tuple[Tensor, Tensor], places: Tensor, options: AttentionOptions) -> None:
    """Write each row's attention over its slot's first ``places`` + 1 positions into ``out`` (rows, heads · dim …)."""
    (rows, heads, dim), (keys, values) = q.shape, cache
    kv_heads, time = keys.shape[1], keys.shape[3]
    group = heads // kv_heads
    numbers = (options.scaling, time, out.stride(0), options.window, options.softcap)
    shapes = {"GROUP": group, "DIM": dim, "WIDTH": max(16, _power(dim)), "QUERIES": max(16, _power(group))}
    meta = {"CAPPED": options.softcap > 0.0, "TIME": TIME}
    _launch("attend", (rows, kv_heads), out, q, keys, values, places, *numbers, **shapes, **meta)


def _power(number: int) -> int:
    """Return the smallest power of two that is no smaller."""
    return 1 << max(0, number - 1).bit_length()


def _launch(name: str, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    with torch.cuda.device_of(arguments[0]):
        getattr(_bodies(), name)[grid](*arguments, **meta)


def _bodies() -> Any:
    return importlib.import_module("seedtune.engines.transformers.gpu_kernels.layer_triton")
