"""Linear layers of a model whose live weights are rewritten for every member, in the layout products read fastest.

Layers of one input are stacked in one buffer, of which their parameters are views: a member is written into the
parameters, and the buffer is packed once.  That is a second copy of the live weights and pays from a few tokens on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seedtune.engines.transformers.linear import LinearGroup, Part, PerturbedLinear, RowState
from seedtune.engines.transformers.tracing import EXPERT, Trace, group_calls, replace_module


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """A stack of layers, and whether any of them is ever rewritten."""

    group: LinearGroup
    buffer: Tensor
    changes: bool

    def pack(self) -> None:
        """Make the products follow the parameters."""
        self.group.weight.set(self.buffer)


def pack_layers(model: Any, trace: Trace, trainable: Collection[str]) -> list[PackedGroup]:
    """Put packed layers in place of every plain linear layer of the traced pass, routed experts left out."""
    changing = {id(p) for name, p in model.named_parameters() if name in trainable}
    modules = dict(model.named_modules())
    calls = [c for c in trace.calls if type(modules[c.name]) is nn.Linear and not EXPERT.search(c.name)]
    return [_pack(model, names, [modules[n] for n in names], changing) for names in group_calls(calls)]


def _pack(model: Any, names: list[str], layers: list[Any], changing: Collection[int]) -> PackedGroup:
    buffer = _stack([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if layer.bias is not None]
    parts = [Part(n, layer.out_features, False, None) for n, layer in zip(names, layers, strict=True)]
    group = LinearGroup(parts, layers[0].in_features, state=RowState(), packed=True)
    group.weight.bias = _stack_biases(layers) if biases else None
    for index, (name, layer) in enumerate(zip(names, layers, strict=True)):
        own = {key: p for key, p in (("weight", layer.weight), ("bias", layer.bias)) if p is not None}
        replace_module(model, name, PerturbedLinear(group, index, own))
    packed = PackedGroup(group, buffer, any(id(layer.weight) in changing for layer in layers))
    packed.pack()
    return packed


def _stack(weights: list[Any]) -> Tensor:
    """One buffer with the weights under each other; they become views of it."""
    if len(weights) == 1:
        only: Tensor = weights[0].data
        return only
    buffer = torch.cat([w.data for w in weights])
    for weight, view in zip(weights, buffer.split([w.shape[0] for w in weights]), strict=True):
        weight.data = view
    return buffer


def _stack_biases(layers: list[Any]) -> Tensor:
    """One vector of all layers' biases, zero where a layer has none; they become views of it."""
    some = next(layer.bias for layer in layers if layer.bias is not None)
    fused: Tensor = some.data.new_zeros(sum(layer.out_features for layer in layers))
    for layer, view in zip(layers, fused.split([layer.out_features for layer in layers]), strict=True):
        if layer.bias is not None:
            view.copy_(layer.bias.data)
            layer.bias.data = view
    return fused
