"""Trace the linear layers that a model runs, how often, and which of them read the same input."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
"""Matches routed experts: an expert runs on the tokens sent to it, even if the probe sent it all of them."""


@dataclass(slots=True)
class LayerCall:
    """One call of a linear layer seen while tracing: the input object, and the number of rows."""

    name: str
    input: Tensor
    rows: int


def is_linear(module: nn.Module) -> bool:
    """Return whether a module is a plain ``nn.Linear`` or ``Conv1D``; subclasses with their own product are not."""
    return type(module) in (nn.Linear, Conv1D)


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
        layers = [model.get_submodule(name) for name in dict.fromkeys(call.name for call in self.calls)]
        sizes = [(tuple(layer.weight.shape), isinstance(layer, Conv1D)) for layer in layers]
        return [(size[1], size[0]) if turned else size for size, turned in sizes]


def trace(model: Any, run: Any, *, tokens: int, heads: int) -> Trace:
    """Return the calls of ``run()``, a pass of that many tokens and head rows, in order."""
    calls: list[LayerCall] = []

    def hook(name: str) -> Any:
        return lambda _module, inputs: calls.append(
            LayerCall(name, inputs[0], inputs[0].numel() // inputs[0].shape[-1])
        )

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
    counts: dict[str, int] = {}
    for call in calls:
        counts[call.name] = counts.get(call.name, 0) + 1
    groups: list[list[str]] = []
    previous: Tensor | None = None
    for call in calls:
        once = counts[call.name] == 1
        if once and call.input is previous:
            groups[-1].append(call.name)
        elif [call.name] not in groups:
            groups.append([call.name])
        previous = call.input if once else None
    return groups
