"""Attention over slots, registered with transformers' attention interface.

The batch is packed: one row of tokens, (1, tokens, hidden), without padding.  A *prefill* pass holds whole
prompts behind each other and fills their slots; a *decode* pass holds one token of each row in flight.
Only here is a prompt padded, inside the layer, because attention needs rectangles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from seedtune.engines.transformers.cache import TIME_STEP, SlotCache, SlotLayer
from seedtune.engines.transformers.linear import bits
from seedtune.errors import ModelError
from seedtune.kernels import attention as kernel


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompts of ``lengths`` tokens behind each other, for the slots from ``first_slot`` on."""

    first_slot: int
    lengths: tuple[int, ...]

    def positions(self) -> list[int]:
        return [position for length in self.lengths for position in range(length)]

    def last(self) -> list[int]:
        """The index of each prompt's last token."""
        return (np.cumsum(self.lengths) - 1).tolist()

    def padded(self, device: torch.device) -> Tensor | None:
        """(prompts, longest) token indices, or None where all lengths are equal."""
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        starts = np.cumsum([0, *self.lengths[:-1]])
        index = starts[:, None] + np.minimum(np.arange(longest), np.array(self.lengths)[:, None] - 1)
        return torch.from_numpy(index).to(device)


@dataclass(frozen=True, slots=True)
class Decode:
    """One token for each of the slots 0, 1, …; ``lengths`` (int32) positions are already filled."""

    lengths: np.ndarray


class SlotAttention:
    """The attention function of one engine, and the pass (prefill or decode) it is in."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache
        self.current: Prefill | Decode = Prefill(0, (1,))
        self._padded: Tensor | None = None
        self.name = f"seedtune-{id(self)}"
        AttentionInterface.register(self.name, self)

    def begin(self, current: Prefill | Decode, device: torch.device) -> None:
        """Say what the next forward pass holds."""
        self.current = current
        self._padded = current.padded(device) if isinstance(current, Prefill) else None

    def __call__(  # noqa: PLR0913 - the interface is transformers'
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        """Query (1, heads, tokens, dim), key and value (1, kv_heads, tokens, dim) → (1, tokens, heads, dim)."""
        layer, self.cache.pending = self.cache.pending, None
        for unsupported in ("s_aux", "position_bias"):
            if others.get(unsupported) is not None:
                raise ModelError(f"{type(module).__name__} uses {unsupported}, which this engine cannot batch yet.")
        if layer is None:
            raise ModelError(f"{type(module).__name__} attends without its own key-value cache; not supported yet.")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        window, cap = sliding_window or 0, softcap or 0.0
        if isinstance(self.current, Decode):
            return self._decode(layer, query, key, value, (scale, window, cap)), None
        return self._prefill(layer, query, key, value, (scale, window, cap)), None

    def _prefill(
        self, layer: SlotLayer, query: Tensor, key: Tensor, value: Tensor, how: tuple[float, int, float]
    ) -> Tensor:
        assert isinstance(self.current, Prefill)
        q, k, v = (self._pad(x) for x in (query, key, value))
        first, count, longest = self.current.first_slot, q.shape[0], q.shape[2]
        if not layer.is_initialized:
            layer.lazy_initialization(k, v)
        layer.keys[first : first + count, :, :, :longest] = k.transpose(-1, -2)
        layer.values[first : first + count, :, :longest] = torch.nan_to_num(v)
        out = _attend_prompts(q, k, v, *how)
        if self._padded is None:
            return out.transpose(1, 2).reshape(1, -1, out.shape[1], out.shape[3])
        rows = [out[i, :, :length].transpose(0, 1) for i, length in enumerate(self.current.lengths)]
        return torch.cat(rows)[None]

    def _pad(self, x: Tensor) -> Tensor:
        """(1, heads, tokens, dim) → (prompts, heads, longest, dim), right-padded."""
        assert isinstance(self.current, Prefill)
        if self._padded is None:
            rows = len(self.current.lengths)
            return x[0].unflatten(1, (rows, -1)).transpose(0, 1)
        return x[0][:, self._padded].transpose(0, 1)

    def _decode(
        self, layer: SlotLayer, query: Tensor, key: Tensor, value: Tensor, how: tuple[float, int, float]
    ) -> Tensor:
        assert isinstance(self.current, Decode)
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        scale, window, cap = how
        lengths = self.current.lengths
        if q.device.type == "cpu" and _kernel_serves(q, v):
            out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
            kernel.decode(
                bits(out),
                bits(q),
                new=(bits(k), bits(v)),
                cache=(bits(layer.keys), bits(layer.values)),
                lengths=lengths,
                scaling=scale,
                window=window,
                softcap=cap,
            )
            return out[None]
        return _decode_torch(layer, q, k, v, torch.from_numpy(lengths).to(q.device, torch.long), how)[None]


def _kernel_serves(q: Tensor, v: Tensor) -> bool:
    even = q.shape[2] % TIME_STEP == 0 and v.shape[2] % TIME_STEP == 0
    return even and q.dtype in (torch.float32, torch.bfloat16)


def _attend_prompts(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int, cap: float) -> Tensor:
    """Causal attention of right-padded prompts; padded queries give values nobody reads."""
    longest = q.shape[2]
    if cap == 0.0 and (window == 0 or window >= longest):
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=longest > 1, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    time = torch.arange(longest, device=q.device)
    distance = time[:, None] - time[None, :]
    seen = (distance >= 0) & (distance < window) if window else distance >= 0
    return _attend(q, k.transpose(-1, -2), v, seen[None, None, None], scale, cap)


def _attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, cap: float) -> Tensor:
    """Plain attention with grouped heads; ``seen`` broadcasts to (rows, kv_heads, group, queries, time)."""
    rows, heads, queries, dim = q.shape
    grouped = (
        q.view(rows, keys.shape[1], -1, queries, dim)
        if q.is_contiguous()
        else q.reshape(rows, keys.shape[1], -1, queries, dim)
    )
    scores = (grouped @ keys[:, :, None]).float() * scale
    if cap > 0.0:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).to(q.dtype)
    return (weights @ values[:, :, None]).reshape(rows, heads, queries, values.shape[-1])


def _decode_torch(
    layer: SlotLayer, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, how: tuple[float, int, float]
) -> Tensor:
    """The decode step with torch operations: write the new keys and values, attend to each slot's own past.

    Values are kept finite: what a broken member left in a slot is weighed with 0, and 0·NaN is NaN.
    """
    scale, window, cap = how
    rows = torch.arange(q.shape[0], device=q.device)
    layer.keys[rows, :, :, lengths] = k
    layer.values[rows, :, lengths] = torch.nan_to_num(v)
    used = int(lengths.max()) + 1
    time = torch.arange(used, device=q.device)
    seen = time[None, :] <= lengths[:, None]
    if window:
        seen &= time[None, :] > lengths[:, None] - window
    keys, values = layer.keys[: q.shape[0], :, :, :used], layer.values[: q.shape[0], :, :used]
    return _attend(q[:, :, None], keys, values, seen[:, None, None, None], scale, cap)[:, :, 0]
