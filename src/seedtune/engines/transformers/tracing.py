"""Trace the linear layers that a model runs, how often, and which of them read the same input."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
"""Matches routed experts: an expert runs on the tokens sent to it, even if the probe sent it all of them."""


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a linear layer seen while tracing: the input object, and the number of rows."""

    name: str
    input: Tensor
    rows: int
    stacks: bool
    """Whether the layer can be stacked with others; ``Conv1D`` is stored (in, out) and cannot."""


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a plain ``nn.Linear`` or ``Conv1D``; subclasses with their own product are not."""
    return type(module) in (nn.Linear, Conv1D)


def weight_of(layer: Any) -> Tensor:
    """Return the weight of a linear layer as (out, in)."""
    weight: Tensor = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def shared_weights(modules: Collection[nn.Module]) -> set[int]:
    """Return ids of weights of embeddings, and of two linear layers: they do not belong to one linear layer only."""
    counts = Counter(id(module.weight) for module in modules if is_linear(module))
    embeddings = {id(p) for module in modules if isinstance(module, nn.Embedding) for p in module.parameters()}
    return embeddings | {weight for weight, count in counts.items() if count > 1}


def replace_module(model: Any, name: str, module: nn.Module) -> None:
    """Put ``module`` in place of the module of ``model`` with that dotted name."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


@dataclass(frozen=True, slots=True)
class Trace:
    """The calls of every linear layer during one pass of ``tokens`` tokens and ``heads`` rows of the head."""

    calls: list[LayerCall]
    tokens: int
    heads: int

    def shapes(self, model: Any) -> list[tuple[int, int]]:
        """Return (outputs, inputs) of every layer that was called."""
        layers = (model.get_submodule(name) for name in dict.fromkeys(call.name for call in self.calls))
        return [(weight_of(layer).shape[0], weight_of(layer).shape[1]) for layer in layers]


def trace(model: Any, run: Any, *, tokens: int, heads: int) -> Trace:
    """Return the calls of ``run()``, a pass of that many tokens and head rows, in order."""
    calls: list[LayerCall] = []

    def hook(name: str) -> Any:
        def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            calls.append(LayerCall(name, x, x.numel() // x.shape[-1], type(module) is nn.Linear))

        return record

    handles = [
        module.register_forward_pre_hook(hook(name)) for name, module in model.named_modules() if is_linear(module)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return Trace(calls, tokens, heads)


def group_calls(calls: list[LayerCall]) -> list[list[str]]:
    """Group names of layers called in sequence with the same input object; a layer called twice stays alone."""
    counts = Counter(call.name for call in calls)
    groups: list[list[str]] = []
    previous: Tensor | None = None
    for call in calls:
        once = counts[call.name] == 1 and call.stacks
        if once and call.input is previous:
            groups[-1].append(call.name)
        elif [call.name] not in groups:
            groups.append([call.name])
        previous = call.input if once else None
    return groups
