"""Decoder layers on a GPU: a decode step as four products and six launches between them, if a probe shows it is one.

    h ← x + o(attention(rotated q, k, v of norm(x)))        y ← h + down(silu(gate)·up of norm(h))

Members are further inputs of each product, written by the launch that makes its other inputs.  Prefill passes, and
members that are no further inputs, take the model's own layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from seedtune.engines.transformers.cpu_kernels.attention import AttentionOptions
from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack
from seedtune.engines.transformers.decoding.slot_attention import Decode, Prefill, SlotAttention, attention_options
from seedtune.engines.transformers.decoding.slot_cache import SlotCache
from seedtune.engines.transformers.fused.equivalence import NOT_PLAIN, probe_angles, probe_values
from seedtune.engines.transformers.gpu_kernels import layer_launches
from seedtune.engines.transformers.gpu_kernels.layer_launches import Further, HeadNorms
from seedtune.engines.transformers.members.population_linear import Factors, LinearGroup, group_of

_CHILDREN = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
_HEAD_NORMS = {"q_norm", "k_norm"}
_GATE = {"gate_proj", "up_proj", "down_proj", "act_fn"}

_ROWS = 3
"""Rows of the probe, each in its own slot."""

_OFF = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""How far a layer's change of its input may be from the plain one's, as a share of it."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What a layer consists of: its norms (weight and ε), heads, rotation and the options of its attention."""

    norms: tuple[tuple[Tensor, float], tuple[Tensor, float]]
    head_norms: HeadNorms | None
    heads: int
    dim: int
    options: AttentionOptions
    index: int


class DeviceLayer(nn.Module):
    """Attention and feed-forward of one layer; every pass but a plain decode step runs the model's own ``plain``."""

    def __init__(
        self, plain: Any, products: Sequence[LinearGroup], parts: LayerParts, attention: SlotAttention
    ) -> None:
        super().__init__()
        for name in sorted(_CHILDREN):
            self.add_module(name, plain.get_submodule(name))
        self.products, self.parts, self.attention = products, parts, attention
        self._plain = (plain,)  # in a tuple it is not a submodule, whose parameters would count twice

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        past_key_values: SlotCache,
        **others: Any,
    ) -> Tensor:
        """Return the next hidden states."""
        cos, sin = position_embeddings
        now, fits = self.attention.current, cos.shape[-1] == self.parts.dim and cos.dtype == hidden_states.dtype
        further = self._further() if isinstance(now, Decode) and fits else None
        if not isinstance(now, Decode) or further is None:
            plain: Tensor = self._plain[0](
                hidden_states, position_embeddings=position_embeddings, past_key_values=past_key_values, **others
            )
            return plain
        return self._step(hidden_states[0].contiguous(), (cos[0], sin[0]), now.places, further)[None]

    def _further(self) -> list[Further | None] | None:
        """Return each product's further inputs; None if there are members that are no further inputs."""
        found: list[Further | None] = []
        for group in self.products:
            if not group.state.active:
                found.append(None)
            elif isinstance(group.noise, Factors) and group.noise.further is not None:
                found.append(Further(group.noise.b, *group.state.on(group.noise.b.device)))
            else:
                return None
        return found

    def _step(
        self, x: Tensor, angles: tuple[Tensor, Tensor], places: Tensor, further: Sequence[Further | None]
    ) -> Tensor:
        """Run a decode step of rows ``x`` (rows, hidden)."""
        parts, (qkv, out, gate_up, down) = self.parts, self.products
        layer = self.attention.cache.layers[parts.index]
        cache, (first_norm, second_norm) = (layer.keys, layer.values), parts.norms
        y = _product(layer_launches.norm(x, *first_norm, further[0]), qkv, further[0])
        q = layer_launches.turn_and_append(y, angles, parts.head_norms, cache, places, heads=parts.heads)
        attended = layer_launches.buffer(x, len(x), out.inputs, further[1])
        layer_launches.attend(attended, q, cache, places, parts.options)
        layer_launches.add_further(attended, out.inputs, further[1])
        h = _product(attended, out, further[1], to=x)
        y = _product(layer_launches.norm(h, *second_norm, further[2]), gate_up, further[2])
        return _product(layer_launches.gate(y, further[3]), down, further[3], to=h)


def _product(x: Tensor, group: LinearGroup, further: Further | None, *, to: Tensor | None = None) -> Tensor:
    """Return a group's outputs for inputs with further ones, plus its bias, or plus ``to`` for a group without."""
    weight = group.weight.plain() if further is None else group.wide(x.shape[1] - group.inputs)
    start = group.weight.bias if to is None else to
    return torch.mm(x, weight.T) if start is None else torch.addmm(start, x, weight.T)


def device_layer(module: Any, attention: SlotAttention, dtype: torch.dtype) -> DeviceLayer | None:
    """Return a decoder layer in the form for GPUs if its decode step is that of the formula; None for every other."""
    children = dict(module.named_children())
    if set(children) != _CHILDREN or module._parameters or dtype not in _OFF:
        return None
    attend, mlp = module.self_attn, module.mlp
    own = set(dict(attend.named_children()))
    if own - _HEAD_NORMS != _ATTENTION or own & _HEAD_NORMS not in (set(), _HEAD_NORMS) or attend._parameters:
        return None
    if set(dict(mlp.named_children())) != _GATE or mlp._parameters:
        return None
    layers = (
        (attend.q_proj, attend.k_proj, attend.v_proj),
        (attend.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )
    products = [group for group in map(group_of, layers) if group is not None]
    norms = [_norm(child) for child in (module.input_layernorm, module.post_attention_layernorm)]
    of_heads = [_norm(getattr(attend, name)) for name in ("q_norm", "k_norm") if name in own]
    if len(products) < len(layers) or None in (*norms, *of_heads) or products[1].weight.bias is not None:
        return None
    if products[3].weight.bias is not None:
        return None
    try:
        return _checked(module, products, norms, of_heads, attention, dtype)
    except NOT_PLAIN:
        return None


def _norm(module: Any) -> tuple[Tensor, float] | None:
    """Return weight and ε of an RMS norm; None for every other module."""
    eps = next((vars(module)[key] for key in ("variance_epsilon", "eps") if key in vars(module)), None)
    parameters = dict(module.named_parameters())
    if not type(module).__name__.endswith("RMSNorm") or set(parameters) != {"weight"} or eps is None:
        return None
    return parameters["weight"].detach(), float(eps)


@torch.no_grad()
def _checked(
    module: Any,
    products: Sequence[LinearGroup],
    norms: Any,
    of_heads: Any,
    attention: SlotAttention,
    dtype: torch.dtype,
) -> DeviceLayer | None:
    """Run two decode steps after a prefill of the plain layer, and the same in the new form; None if they differ."""
    weight = norms[0][0]
    device, width = weight.device, weight.numel()
    seen: list[tuple[Tensor, dict[str, Any]]] = []

    def recorded(asked: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append((query, options))
        return attention(asked, query, key, value, *rest, **options)

    attend = module.self_attn
    dim = int(vars(attend).get("head_dim") or 0)
    if dim <= 0 or dim % 2:
        return None
    angles = tuple(x.to(device) for x in probe_angles(_ROWS, dim, dtype))
    inputs = [probe_values((1, _ROWS, width), dtype).to(device) * scale for scale in (1, 2, 3)]
    AttentionInterface.register(attention.name, recorded)
    try:
        expected = _steps(module, inputs, angles, attention)
    finally:
        AttentionInterface.register(attention.name, attention)
    query, options = seen[0]
    wanted = (options.get(name) for name in ("scaling", "sliding_window", "softcap"))
    own = HeadNorms(of_heads[0][0], of_heads[1][0], of_heads[0][1]) if of_heads else None
    parts = LayerParts(
        (norms[0], norms[1]), own, query.shape[1], dim, attention_options(dim, *wanted), attend.layer_idx
    )
    layer = DeviceLayer(module, products, parts, attention)
    found = _steps(layer, inputs, angles, attention)
    changes = [(step - x, other - x) for x, step, other in zip(inputs, expected, found, strict=True)]
    near = all(float((b - a).norm()) <= _OFF[dtype] * float(a.norm()) for a, b in changes)
    return layer if near else None


def _steps(layer: Any, inputs: Sequence[Tensor], angles: Any, attention: SlotAttention) -> list[Tensor]:
    """Return the outputs of a prefill of one token a row, and of two decode steps."""
    pack = PrefixPack(0)
    for row in range(_ROWS):
        pack.add(row, (0,), [])
    held, device = (attention.cache, attention.current), inputs[0].device
    attention.cache = SlotCache(_ROWS, 3)
    passes: list[Prefill | Decode] = [
        Prefill.of(pack, device),
        *(Decode(torch.full((_ROWS,), at, device=device), at + 1) for at in (1, 2)),
    ]
    answers = []
    try:
        for now, x in zip(passes, inputs, strict=True):
            attention.current = now
            answers.append(layer(x, position_embeddings=angles, past_key_values=attention.cache))
    finally:
        attention.cache, attention.current = held
    return answers
