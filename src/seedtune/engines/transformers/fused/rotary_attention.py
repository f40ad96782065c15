"""Attention layers with one kernel for their rotary embedding, if a probe shows that they are plain."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from seedtune.engines.transformers.cpu_kernels import rotary
from seedtune.engines.transformers.decoding.slot_attention import SlotAttention, attention_options
from seedtune.engines.transformers.fused.equivalence import NOT_PLAIN, has_only, probe_angles, probe_values
from seedtune.engines.transformers.members.population_linear import bits, input_width, joined

_ARGUMENTS = {"hidden_states", "position_embeddings", "attention_mask", "past_key_values"}
_OPTIONS = ("scaling", "sliding_window", "softcap", "s_aux", "position_bias")
_TOKENS = 3


@dataclass(frozen=True, slots=True)
class AttentionInputs:
    """The arguments that a module passed to attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    options: dict[str, Any]


class FusedAttention(nn.Module):
    """Computes q, k and v in one product, rotates them in place and passes them to ``attend``, on the CPU."""

    def __init__(self, plain: Any, seen: AttentionInputs, attend: Callable[..., Any]) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = plain.q_proj, plain.k_proj, plain.v_proj, plain.o_proj
        self.layer_idx: int = plain.layer_idx
        self.heads, self.kv_heads, self.dim = seen.query.shape[1], seen.key.shape[1], seen.query.shape[3]
        self.attend, self.options = attend, seen.options
        wanted = (seen.options.get(name) for name in ("scaling", "sliding_window", "softcap"))
        self.attention = attention_options(self.dim, *wanted)
        self._plain = (plain,)  # in a tuple it is not a submodule, whose parameters would count twice

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **__: Any,
    ) -> tuple[Tensor, None]:
        """Map hidden states (1, tokens, hidden); unless cos and sin are (1, tokens, dim), run the model's own layer."""
        if not self.turns(position_embeddings, hidden_states):
            # partial rotary embedding or another precision, which the probe cannot show
            arguments = {"position_embeddings": position_embeddings, "past_key_values": past_key_values}
            plain, *_ = self._plain[0](hidden_states, attention_mask=None, **arguments)
            return plain, None
        cos, sin = position_embeddings
        y = joined(hidden_states, (self.q_proj, self.k_proj, self.v_proj))
        packed = y.view(y.shape[1], -1, self.dim)
        rotary.rotate(bits(packed), bits(cos[0]), bits(sin[0]), self.heads + self.kv_heads)
        return self.o_proj(self.read(packed, past_key_values)[None]), None

    def turns(self, angles: tuple[Tensor, Tensor], hidden: Tensor) -> bool:
        """Return whether these angles (cos, sin) cover whole heads, in the precision of the hidden states."""
        cos, _sin = angles
        return cos.shape[-1] == self.dim and cos.dtype == hidden.dtype

    def read(self, packed: Tensor, cache: Any) -> Tensor:
        """Return the attention output (tokens, heads·dim); ``packed`` (tokens, all heads, dim) is rotated q, k, v."""
        q, k, v = (x.transpose(0, 1)[None] for x in packed.split((self.heads, self.kv_heads, self.kv_heads), 1))
        k, v = cache.update(k, v, self.layer_idx)
        out: Tensor = self.attend(self, q, k, v, None, **self.options)[0]
        return out.reshape(packed.shape[0], -1)


class _Through:
    """A cache that stores nothing."""

    def update(self, keys: Tensor, values: Tensor, _layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        return keys, values


@torch.no_grad()
def fused_attention(module: Any, attention: SlotAttention, dtype: torch.dtype) -> FusedAttention | None:
    """Return an attention layer that is plain q, k, v, rotation and output in its fused form; None for others.

    Both must pass the same to attention, bit for bit, and process its output identically.
    """
    if not has_only(module, "q_proj", "k_proj", "v_proj", "o_proj") or "layer_idx" not in vars(module):
        return None
    dim, width = vars(module).get("head_dim"), input_width(module.q_proj)
    known = set(inspect.signature(module.forward).parameters) >= _ARGUMENTS
    if not known or not isinstance(dim, int) or dim % 2 or width is None:
        return None
    inputs = probe_values((1, _TOKENS, width), dtype)
    turn = probe_angles(_TOKENS, dim, dtype)
    seen: list[AttentionInputs] = []

    def attend(_module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **options: Any) -> tuple[Tensor, None]:
        given = {name: options[name] for name in _OPTIONS if options.get(name) is not None}
        seen.append(AttentionInputs(query.clone(), key.clone(), value.clone(), given))
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register(attention.name, attend)
    try:
        expected, _ = module(inputs, position_embeddings=turn, attention_mask=None, past_key_values=_Through())
    except NOT_PLAIN:
        return None
    finally:
        AttentionInterface.register(attention.name, attention)
    if len(seen) != 1 or seen[0].query.shape[3] != dim or seen[0].value.shape != seen[0].key.shape:
        return None
    answer, _ = FusedAttention(module, seen[0], attend)(inputs, turn, past_key_values=_Through())
    first, second = ((passed.query, passed.key, passed.value) for passed in seen)
    same = seen[0].options == seen[1].options and all(map(torch.equal, first, second)) and torch.equal(answer, expected)
    return FusedAttention(module, seen[0], attention) if same else None
