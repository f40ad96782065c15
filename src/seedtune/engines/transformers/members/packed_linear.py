"""Linear layers of a model whose live weights are rewritten for every member, packed for the fastest product.

Layers with the same input are stacked in one buffer, of which their parameters are views: a member is written into
the parameters, and the buffer is packed once.  That is a second copy of the live weights and pays from a few tokens
on; without it each layer is multiplied from its plain layout.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from seedtune.engines.transformers.members.population_linear import (
    LinearGroup,
    Part,
    ProductForm,
    RowState,
    replace_layers,
)
from seedtune.engines.transformers.tracing import EXPERT, Trace, group_calls, is_linear, weight_of


def pack_layers(
    model: Any, trace: Trace, trainable: Collection[str], form: ProductForm
) -> list[tuple[LinearGroup, Tensor]]:
    """Replace every plain linear layer by layers of that product form.

    Layers with the same input that the traced pass ran are stacked; layers used in place, and routed experts, which the
    pass ran or did not run by chance, stay alone.  Returns the stacks that are ever rewritten, with their buffers.
    """
    changing = {id(p) for name, p in model.named_parameters() if name in trainable}
    modules = {name: module for name, module in model.named_modules() if is_linear(module)}
    called = [call for call in trace.calls if not EXPERT.search(call.name)]
    groups = group_calls(called) if form.copied else [[name] for name in dict.fromkeys(call.name for call in called)]
    found = []
    for names in (*groups, *([name] for name in modules if EXPERT.search(name))):
        layers = [modules[name] for name in names]
        buffer = _stack(layers)
        parts = [
            Part(name, len(weight_of(layer)), False, layer.bias) for name, layer in zip(names, layers, strict=True)
        ]
        group = replace_layers(model, parts, buffer.shape[1], state=RowState(), form=form, keep=True)
        group.set(buffer)
        if any(id(p) in changing for layer in layers for p in layer.parameters()):
            found.append((group, buffer))
    return found


def _stack(layers: list[Any]) -> Tensor:
    """Concatenate the layers' weights (out, in) by rows in one buffer; they become views of it."""
    weights = [weight_of(layer) for layer in layers]
    if len(layers) == 1:
        return weights[0]
    buffer = torch.cat(weights)
    for layer, view in zip(layers, buffer.split([len(weight) for weight in weights]), strict=True):
        layer.weight.data = view
    return buffer
