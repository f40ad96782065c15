"""Decoder layers run as four products with one compiled pass after each, if a probe shows that they are plain.

    h ← x + o(attention(rotated q, k, v of norm(x)))        y ← h + down(silu(gate)·up of norm(h))

A decode step of few rows is short, so that calling modules and small operations would take as long as its products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seedtune.engines.transformers.cpu_kernels import layer_steps as kernel
from seedtune.engines.transformers.cpu_kernels.attention import FilledCache
from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack
from seedtune.engines.transformers.decoding.slot_attention import Decode, Prefill, SlotAttention
from seedtune.engines.transformers.decoding.slot_cache import SlotCache
from seedtune.engines.transformers.fused.equivalence import NOT_PLAIN, probe_angles, probe_values
from seedtune.engines.transformers.fused.gated_mlp import FusedGate
from seedtune.engines.transformers.fused.norms import FusedNorm
from seedtune.engines.transformers.fused.rotary_attention import FusedAttention
from seedtune.engines.transformers.members.population_linear import LinearGroup, bits, group_of

_CHILDREN = {
    "self_attn": FusedAttention,
    "mlp": FusedGate,
    "input_layernorm": FusedNorm,
    "post_attention_layernorm": FusedNorm,
}
_ROWS = 3
"""Rows of the probe, each in its own slot."""


class FusedLayer(nn.Module):
    """Attention and feed-forward of one layer of rows (1, rows, hidden), on the CPU in float32 or bfloat16."""

    def __init__(self, plain: Any, products: Sequence[LinearGroup], attention: SlotAttention) -> None:
        super().__init__()
        self.self_attn: FusedAttention = plain.self_attn
        self.mlp: FusedGate = plain.mlp
        self.input_layernorm: FusedNorm = plain.input_layernorm
        self.post_attention_layernorm: FusedNorm = plain.post_attention_layernorm
        self.products, self.attention = products, attention
        self.qkv, self.out, self.gate_up, self.down = products
        self._plain = (plain,)  # in a tuple it is not a submodule, whose parameters would count twice

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: SlotCache,
        **others: Any,
    ) -> Tensor:
        """Return the next hidden states; for angles unlike the probe's, run the model's own layer."""
        if not self.self_attn.turns(position_embeddings, hidden_states):
            plain: Tensor = self._plain[0](
                hidden_states, position_embeddings=position_embeddings, past_key_values=past_key_values, **others
            )
            return plain
        rows = hidden_states[0].contiguous()
        compiled = all(group.compiled for group in self.products)
        weights, cache = self._panels() if compiled else None, self.attention.decoding(self.self_attn.layer_idx)
        if weights is not None and cache is not None:
            return self._decode(rows, weights, cache, position_embeddings)[None]
        heads = self._attend(rows, position_embeddings, past_key_values)
        h, x = self._close(heads, rows)
        return self._feed(h, x)[None]

    def _panels(self) -> tuple[tuple[np.ndarray, np.ndarray], ...] | None:
        """Return the panels of the four products, if all use panels and have an even number of inputs."""
        found = [group.weight.panels() for group in self.products if group.inputs % 2 == 0]
        panels = tuple(pair for pair in found if pair is not None)
        return panels if len(panels) == len(self.products) else None

    def _decode(
        self, rows: Tensor, weights: tuple[Any, ...], cache: FilledCache, angles: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Run a decode step in one call of compiled code."""
        h, attend, (cos, sin) = torch.empty_like(rows), self.self_attn, angles
        kernel.decode_layer(
            bits(h),
            bits(rows),
            norms=(self.input_layernorm.norm, self.post_attention_layernorm.norm),
            weights=weights,
            terms=tuple(group.terms(len(rows)) for group in self.products),
            angles=(bits(cos[0]), bits(sin[0])),
            cache=cache,
            shape=kernel.LayerShape(attend.heads, attend.kv_heads, attend.dim, self.down.inputs),
            options=attend.attention,
        )
        return h

    def _attend(self, rows: Tensor, turn: tuple[Tensor, Tensor], cache: SlotCache) -> Tensor:
        """Return the attention output of every head, (rows, heads·dim)."""
        x, attend = self.input_layernorm(rows), self.self_attn
        y, terms = self.qkv.opened(x)
        cos, sin = (bits(angles[0]) for angles in turn)
        heads = attend.heads + attend.kv_heads
        kernel.turn(bits(y), bits(x), terms, cos, sin, heads)
        packed = y.view(len(y), -1, attend.dim)
        if isinstance(self.attention.current, Decode):
            return self.attention.decode_packed(attend.layer_idx, packed, attend.heads, attend.attention)
        return attend.read(packed, cache)

    def _close(self, heads: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden states after attention, and their norm."""
        y, terms = self.out.opened(heads)
        h, x, norm = torch.empty_like(y), torch.empty_like(y), self.post_attention_layernorm.norm
        kernel.close_and_norm(bits(x), norm, bits(h), bits(before), bits(y), bits(heads), terms)
        return h, x

    def _feed(self, h: Tensor, x: Tensor) -> Tensor:
        """Return ``h`` after adding the feed-forward output for its norm ``x`` in place."""
        y, terms = self.gate_up.opened(x)
        gated = y.new_empty(y.shape[0], y.shape[1] // 2)
        kernel.gate(bits(gated), bits(y), bits(x), terms)
        (z, terms), h_bits = self.down.opened(gated), bits(h)
        kernel.close(h_bits, h_bits, bits(z), bits(gated), terms)
        return h


def fused_layer(module: Any, attention: SlotAttention, dtype: torch.dtype) -> FusedLayer | None:
    """Return a decoder layer in its fused form if both give the same bits; None for every other module."""
    kinds = {name: type(child) for name, child in module.named_children()}
    if kinds != _CHILDREN or module._parameters:
        return None
    attend, mlp = module.self_attn, module.mlp
    layers = (
        (attend.q_proj, attend.k_proj, attend.v_proj),
        (attend.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )
    products = [group for group in map(group_of, layers) if group is not None]
    if len(products) < len(layers):
        return None
    fused = FusedLayer(module, products, attention)
    try:
        expected = _passes(module, attention, dtype)
    except NOT_PLAIN:
        return None
    plain = all(isinstance(answer, Tensor) for answer in expected)
    same = plain and all(map(torch.equal, _passes(fused, attention, dtype), expected))
    return fused if same else None


@torch.no_grad()
def _passes(layer: Any, attention: SlotAttention, dtype: torch.dtype) -> list[Tensor]:
    """Return the outputs of a layer for a prefill pass and for a decode step."""
    attend: FusedAttention = layer.self_attn
    width: int = layer.input_layernorm.weight.numel()
    turn = probe_angles(_ROWS, attend.dim, dtype)
    pack = PrefixPack(0)
    for row in range(_ROWS):
        pack.add(row, (0,), [])
    held = attention.cache, attention.current
    attention.cache = SlotCache(_ROWS, 2)
    answers: list[Tensor] = []
    try:
        for now in (Prefill.of(pack, torch.device("cpu")), Decode(torch.ones(_ROWS, dtype=torch.int64), 2)):
            attention.current = now
            x = probe_values((1, _ROWS, width), dtype) * (1 + len(answers))
            answers.append(layer(x, position_embeddings=turn, past_key_values=attention.cache))
    finally:
        attention.cache, attention.current = held
    return answers
