"""Linear layers of a model whose live weights are rewritten for every member, packed for the fastest product.

Layers with the same input are stacked in one buffer, of which their parameters are views: a member is written into
the parameters, and the buffer is packed once.  That is a second copy of the live weights and pays from a few tokens
on; without it each layer is multiplied from its plain layout.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from seedtune.engines.transformers.members.population_linear import (
    LinearGroup,
    Part,
    PerturbedLinear,
    ProductForm,
    RowState,
)
from seedtune.engines.transformers.tracing import EXPERT, Trace, group_calls, is_linear, replace_module


@dataclass(frozen=True, slots=True)
class PackedGroup:
    """A stack of layers, and whether any of them is ever rewritten."""

    group: LinearGroup
    buffer: Tensor
    changes: bool

    def pack(self) -> None:
        """Repack the products' weights from the parameters."""
        self.group.weight.set(self.buffer)


def pack_layers(model: Any, trace: Trace, trainable: Collection[str], form: ProductForm) -> list[PackedGroup]:
    """Replace every plain linear layer by layers of that product form.

    Layers with the same input that the traced pass ran are stacked; layers used in place, and routed experts, which the
    pass ran or did not run by chance, stay alone.
    """
    changing = {id(p) for name, p in model.named_parameters() if name in trainable}
    modules = {name: module for name, module in model.named_modules() if is_linear(module)}
    together = [c for c in trace.calls if type(modules[c.name]) is nn.Linear and not EXPERT.search(c.name)]
    groups = group_calls(together) if form.copied else []
    grouped = {name for names in groups for name in names}
    called = {call.name for call in trace.calls}
    alone = [[name] for name in modules if name not in grouped and (name in called or EXPERT.search(name))]
    return [_pack(model, {name: modules[name] for name in names}, changing, form) for names in (*groups, *alone)]


def _pack(model: Any, named: dict[str, Any], changing: Collection[int], form: ProductForm) -> PackedGroup:
    layers = list(named.values())
    buffer = layers[0].weight.data.T if isinstance(layers[0], Conv1D) else _stack([layer.weight for layer in layers])
    biases = [layer.bias for layer in layers if layer.bias is not None]
    outputs = [layer.weight.shape[1 if isinstance(layer, Conv1D) else 0] for layer in layers]
    parts = [Part(name, size, False, None) for name, size in zip(named, outputs, strict=True)]
    group = LinearGroup(parts, buffer.shape[1], state=RowState(), form=form)
    group.weight.bias = _stack_biases(layers, outputs) if biases else None
    for index, (name, layer) in enumerate(named.items()):
        own = {key: p for key, p in (("weight", layer.weight), ("bias", layer.bias)) if p is not None}
        replace_module(model, name, PerturbedLinear(group, index, own))
    packed = PackedGroup(group, buffer, any(id(layer.weight) in changing for layer in layers))
    packed.pack()
    return packed


def _stack(weights: list[Any]) -> Tensor:
    """Concatenate the weights by rows in one buffer; they become views of it."""
    if len(weights) == 1:
        only: Tensor = weights[0].data
        return only
    buffer = torch.cat([w.data for w in weights])
    for weight, view in zip(weights, buffer.split([w.shape[0] for w in weights]), strict=True):
        weight.data = view
    return buffer


def _stack_biases(layers: list[Any], outputs: list[int]) -> Tensor:
    """Concatenate all layers' biases, zero for layers without; they become views of the result."""
    some = next(layer.bias for layer in layers if layer.bias is not None)
    fused: Tensor = some.data.new_zeros(sum(outputs))
    for layer, view in zip(layers, fused.split(outputs), strict=True):
        if layer.bias is not None:
            view.copy_(layer.bias.data)
            layer.bias.data = view
    return fused
