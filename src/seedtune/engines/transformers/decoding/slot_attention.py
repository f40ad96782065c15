"""Attention over slots, registered with transformers' attention interface.

The batch is packed: one row of tokens, (1, tokens, hidden), without padding.  A *prefill* pass holds whole
prompts in sequence (shared prefixes of a member's prompts once) and fills their slots; a *decode* pass
holds one token of each row in flight.  Only here are prompts padded, because attention needs rectangles.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from seedtune.engines.transformers.cpu_kernels import attention as kernel
from seedtune.engines.transformers.cpu_kernels.attention import AttentionOptions, FilledCache, Prompts
from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack
from seedtune.engines.transformers.decoding.slot_cache import SlotCache, SlotLayer
from seedtune.engines.transformers.device import uploaded
from seedtune.engines.transformers.members.population_linear import bits
from seedtune.errors import ModelError


@dataclass(frozen=True, slots=True)
class Queries:
    """The queries of some prompts of a pack, at each row's positions ``starts`` + 0, 1, …; a rectangle."""

    rows: Tensor
    """(rows,) indices of prompts."""
    tokens: Tensor
    """(rows · width,) indices in the pack of the query tokens; a short row repeats its last."""
    positions: Tensor | None
    """(rows, width) positions of the queries; None for whole prompts, 0, 1, …"""
    width: int


@dataclass(frozen=True, slots=True)
class Prefill:
    """A pack of prompts for the slots from ``first_slot`` on, as the indices attention needs."""

    first_slot: int
    longest: int
    keys: Tensor
    """(prompts · longest,) index in the pack of the token at every position; a short prompt repeats its last."""
    queries: tuple[Queries, ...]
    """Whole prompts; then prompts that extend a prefix of another prompt of their member."""
    outputs: Tensor
    """(tokens,) index of each token's result among those of all queries."""
    prompts: Prompts
    """The same for the compiled kernel."""

    @classmethod
    def of(cls, pack: PrefixPack, device: torch.device) -> Prefill:
        """Build the indices of a pack."""
        square, starts, lengths = pack.rectangle(), np.array(pack.starts), np.array(pack.lengths)
        queries, outputs, offset = [], np.empty(len(pack.ids), np.int64), 0
        for rows in (np.flatnonzero(starts == 0), np.flatnonzero((starts > 0) & (starts < lengths))):
            if rows.size == 0:
                continue
            width = int((lengths - starts)[rows].max())
            wanted = starts[rows, None] + np.arange(width)
            positions = np.minimum(wanted, lengths[rows, None] - 1)
            tokens = square[rows[:, None], positions]
            own = wanted == positions
            outputs[tokens[own]] = offset + np.flatnonzero(own)
            offset += tokens.size
            at = None if not starts[rows].any() else torch.from_numpy(positions).to(device)
            chosen, flat = (torch.from_numpy(x).to(device) for x in (rows, tokens.reshape(-1)))
            queries.append(Queries(chosen, flat, at, width))
        keys, places = (torch.from_numpy(x).to(device) for x in (square.reshape(-1), outputs))
        prompts = Prompts(pack.first_slot, np.concatenate(pack.paths), np.cumsum(lengths), starts)
        return cls(pack.first_slot, square.shape[1], keys, tuple(queries), places, prompts)


@dataclass
class Decode:
    """One token for each of the slots 0, 1, …; ``places`` (rows,) positions are already filled.

    ``used``: at least the positions filled in the longest row after this pass; more of them are read for nothing.
    """

    places: Tensor
    used: int
    _hidden: dict[int, Tensor] = field(default_factory=dict)

    def hidden(self, window: int) -> Tensor:
        """Return (rows, used), the positions that rows do not attend to; one mask for all layers with this window."""
        if window not in self._hidden:
            last = self.places[:, None]
            time = torch.arange(self.used, device=last.device)
            self._hidden[window] = (time > last) | (time <= last - window) if window else time > last
        return self._hidden[window]

    @cached_property
    def lengths(self) -> np.ndarray:
        """The places for the compiled kernel, int32."""
        return self.places.numpy().astype(np.int32)

    @cached_property
    def slots(self) -> Tensor:
        """The slot of every row, on the device."""
        return torch.arange(self.places.numel(), device=self.places.device)


class SlotAttention:
    """The attention function of one engine, and the pass (prefill or decode) it is in."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache
        self.current: Prefill | Decode = Decode(torch.zeros(1, dtype=torch.int64), 1)
        """The content of the forward pass in flight; set before each pass."""
        self.name = f"seedtune-{id(self)}"
        AttentionInterface.register(self.name, self)

    def close(self) -> None:
        """Release the cache, and unregister from transformers."""
        self.cache.layers.clear()
        AttentionInterface._global_mapping.pop(self.name, None)

    def run(self, model: Any, ids: Tensor, places: Tensor, current: Prefill | Decode, keep: Tensor | None) -> Tensor:
        """Return logits (kept tokens, vocabulary) of one forward pass of packed tokens; without ``keep`` of all.

        ``ids`` and ``places`` (tokens,) int64 are on the model's device.
        """
        self.current = current
        output = model(
            input_ids=ids[None],
            position_ids=places[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=0 if keep is None else keep,
        )
        logits: Tensor = output.logits[0]
        return logits

    def prefill(self, model: Any, pack: PrefixPack, keep: np.ndarray) -> Tensor:
        """Return logits of the tokens ``keep`` of a pack, whose keys and values fill its slots."""
        device = model.device
        ids, places = uploaded(device, np.array(pack.ids, np.int32), np.array(pack.positions, np.int32))
        kept = torch.from_numpy(keep).to(device)
        return self.run(model, ids.long(), places.long(), Prefill.of(pack, device), kept)

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
        """Map query (1, heads, tokens, dim), key and value (1, kv_heads, tokens, dim) to (1, tokens, heads, dim)."""
        layer, self.cache.pending = self.cache.pending, None
        for unsupported in ("s_aux", "position_bias"):
            if others.get(unsupported) is not None:
                raise ModelError(f"{type(module).__name__} uses {unsupported}, which this engine cannot batch yet.")
        if layer is None:
            raise ModelError(f"{type(module).__name__} attends without its own key-value cache; not supported yet.")
        options = attention_options(query.shape[-1], scaling, sliding_window, softcap)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        if isinstance(self.current, Decode):
            return _decode(layer, q, k, v, self.current, options)[None], None
        if not layer.is_initialized:
            layer.lazy_initialization(key, value)
        return _prefill(layer, q, k, v, self.current, options)[None], None

    def decoding(self, index: int) -> FilledCache | None:
        """Return keys, values and filled lengths of layer ``index``, if the compiled kernel serves the decode step."""
        if not isinstance(self.current, Decode) or len(self.cache.layers) <= index:
            return None
        arrays = self.cache.layers[index].arrays if self.cache.layers[index].is_initialized else None
        return None if arrays is None else FilledCache(*arrays, self.current.lengths)

    def decode_packed(self, index: int, packed: Tensor, heads: int, options: AttentionOptions) -> Tensor:
        """Return the attention output of layer ``index`` in a decode step, (rows, heads·dim).

        ``packed`` (rows, all heads, dim) holds ``heads`` queries, then keys and values.
        """
        assert isinstance(self.current, Decode)
        kv_heads = (packed.shape[1] - heads) // 2
        q, k, v = packed.split((heads, kv_heads, kv_heads), 1)
        return _decode(self.cache.layers[index], q, k, v, self.current, options).flatten(1)


def attention_options(dim: int, scaling: float | None, window: int | None, softcap: float | None) -> AttentionOptions:
    """Return the options of a transformers attention call, with their defaults."""
    return AttentionOptions(dim**-0.5 if scaling is None else scaling, window or 0, softcap or 0.0)


def _prefill(layer: SlotLayer, q: Tensor, k: Tensor, v: Tensor, now: Prefill, options: AttentionOptions) -> Tensor:
    """Write all keys and values (tokens, kv_heads, dim) of a pack, and attend to each prompt's own."""
    if layer.arrays is not None:
        out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
        new = bits(k.contiguous()), bits(v.contiguous())
        kernel.prefill(
            bits(out), bits(q.contiguous()), new=new, cache=layer.arrays, prompts=now.prompts, options=options
        )
        return out
    keys, values = (_rectangle(x, now.keys, now.longest) for x in (k, torch.nan_to_num(v)))
    first, count = now.first_slot, keys.shape[0]
    layer.keys[first : first + count, :, :, : now.longest] = keys.transpose(-1, -2)
    layer.values[first : first + count, :, : now.longest] = values
    found = [
        _attend_prompts(_rectangle(q, part.tokens, part.width), keys, values, part, options) for part in now.queries
    ]
    return torch.cat([x.transpose(1, 2).flatten(0, 1) for x in found]).index_select(0, now.outputs)


def _rectangle(x: Tensor, tokens: Tensor, width: int) -> Tensor:
    """Gather (tokens of the pack, heads, dim) → (rows, heads, width, dim)."""
    return x.index_select(0, tokens).unflatten(0, (-1, width)).transpose(1, 2)


def _attend_prompts(q: Tensor, keys: Tensor, values: Tensor, part: Queries, options: AttentionOptions) -> Tensor:
    """Compute causal attention of some prompts' tokens; values of padded queries are unused."""
    if part.rows.numel() < keys.shape[0]:
        keys, values = keys.index_select(0, part.rows), values.index_select(0, part.rows)
    whole = part.positions is None
    if whole:
        keys, values = keys[:, :, : part.width], values[:, :, : part.width]
    longest = keys.shape[2]
    bounded = 0 < options.window < longest
    if whole and not bounded and options.softcap == 0.0:
        return _sdpa(q, keys, values, None, options.scaling)
    time = torch.arange(longest, device=q.device)
    at = time[None, : part.width] if part.positions is None else part.positions
    distance = at[:, None, :, None] - time
    seen = (distance >= 0) & (distance < options.window) if bounded else distance >= 0
    if options.softcap == 0.0:
        return _sdpa(q, keys, values, seen, options.scaling)
    return _attend(q, keys.transpose(-1, -2), values, ~seen[:, :, None], options)


def _sdpa(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    return functional.scaled_dot_product_attention(
        q,
        keys,
        values,
        attn_mask=seen,
        is_causal=seen is None and q.shape[2] > 1,
        scale=scale,
        enable_gqa=q.shape[1] != keys.shape[1],
    )


def _attend(q: Tensor, keys: Tensor, values: Tensor, hidden: Tensor, options: AttentionOptions) -> Tensor:
    """Compute plain attention with grouped heads; ``hidden`` broadcasts to (rows, kv_heads, group, queries, time)."""
    rows, heads, queries, dim = q.shape
    kv_heads, time = keys.shape[1], keys.shape[3]
    # the queries of a group are rows of one product, so that keys and values are read in place
    scores = (q.reshape(rows, kv_heads, -1, dim) @ keys).float() * options.scaling
    if options.softcap > 0.0:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    scores = scores.view(rows, kv_heads, -1, queries, time).masked_fill(hidden, float("-inf"))
    weights = scores.softmax(-1).to(q.dtype).view(rows, kv_heads, -1, time)
    return (weights @ values).reshape(rows, heads, queries, values.shape[-1])


def _decode(layer: SlotLayer, q: Tensor, k: Tensor, v: Tensor, now: Decode, options: AttentionOptions) -> Tensor:
    """Write the new keys and values (rows, kv_heads, dim), and attend to each slot's own past.

    Values are kept finite: leftovers of a broken member in a slot are weighted by 0, and 0·NaN is NaN.
    """
    if layer.arrays is not None:
        out = q.new_empty(q.shape[0], q.shape[1], v.shape[2])
        kernel.decode(
            bits(out),
            bits(q),
            new=(bits(k), bits(v)),
            cache=layer.arrays,
            lengths=now.lengths,
            options=options,
        )
        return out
    rows, used = q.shape[0], now.used
    layer.keys[now.slots, :, :, now.places] = k
    layer.values[now.slots, :, now.places] = torch.nan_to_num(v)
    hidden = now.hidden(options.window)[:, None, None, None]
    keys, values = layer.keys[:rows, :, :, :used], layer.values[:rows, :, :used]
    return _attend(q.contiguous()[:, :, None], keys, values, hidden, options)[:, :, 0]
