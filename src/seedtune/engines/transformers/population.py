"""Turn a model's linear layers into population layers, and give them the factors of the members in flight."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from seedtune.engines.transformers.linear import (
    Factors,
    FrozenLinear,
    LinearGroup,
    Part,
    PerturbedLinear,
    Rows,
    RowState,
    can_pack,
)
from seedtune.types import Coverage, Member
from seedtune.weights import Centre

_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
"""A routed expert runs on the tokens sent to it, even if the probe happened to send it all of them."""


@dataclass(slots=True)
class Call:
    """One call of a linear layer seen while tracing: which input object, and how many rows."""

    name: str
    input: Tensor
    rows: int


def is_linear(module: nn.Module) -> bool:
    """A plain ``nn.Linear`` or ``Conv1D``; subclasses with a product of their own are left alone."""
    return type(module) in (nn.Linear, Conv1D)


def trace(model: Any, run: Any) -> list[Call]:
    """The calls of every linear layer during ``run()``, in order."""
    calls: list[Call] = []

    def hook(name: str) -> Any:
        return lambda _module, inputs: calls.append(Call(name, inputs[0], inputs[0].numel() // inputs[0].shape[-1]))

    handles = [
        module.register_forward_pre_hook(hook(name)) for name, module in model.named_modules() if is_linear(module)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def group_calls(calls: list[Call]) -> list[list[str]]:
    """Names of layers called one after the other with the same input object; a layer called twice stands alone."""
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


class Population:
    """The groups of a model, the centre they read, and the factors of the job in flight."""

    def __init__(
        self,
        model: Any,
        *,
        calls: list[Call],
        rows: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """``rows`` are the traced counts of tokens and of head rows; other layers are not run per token."""
        self.state, self.head_state = RowState(), RowState()
        self.dtype, self._device = dtype, device
        self._model = model
        head = model.get_output_embeddings()
        self._tied = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        modules = dict(model.named_modules())
        per_token = [
            c
            for c in calls
            if not _EXPERT.search(c.name) and self._perturbable(modules[c.name], c.rows, rows[modules[c.name] is head])
        ]
        self.coverage = self._coverage(model, {c.name for c in per_token}, {c.name for c in calls})
        self.groups: list[LinearGroup] = []
        self.tensors: dict[str, np.ndarray] = {}
        self._fused: list[list[np.ndarray]] = []
        for names in group_calls(per_token):
            for same in _by_layout(names, modules):
                self._take(same, modules, self.head_state if modules[same[0]] is head else self.state)

    def _perturbable(self, module: nn.Module, rows: int, expected: int) -> bool:
        return rows == expected and id(module.weight) not in self._tied

    def _coverage(self, model: Any, chosen: set[str], called: set[str]) -> Coverage:
        modules = dict(model.named_modules())
        perturbed, total, why = 0, 0, dict[str, str]()
        for name, parameter in model.named_parameters():
            owner, _, leaf = name.rpartition(".")
            total += parameter.numel()
            if owner in chosen and leaf == "weight":
                perturbed += parameter.numel()
                continue
            why.setdefault(_pattern(name), _reason(modules[owner], parameter, owner in called))
        head = next((n for n, m in model.named_modules() if m is model.get_output_embeddings()), None)
        if head is not None and head not in chosen:
            why.setdefault(f"{head}.weight", "output head tied to the input embeddings")
        return Coverage(perturbed, total, tuple(sorted(why.items())))

    def _take(self, names: list[str], modules: dict[str, Any], state: RowState) -> None:
        """Move the layers' weights into a float32 buffer of the centre and put population layers in place."""
        parts = [_part(name, modules[name], self.dtype, self._device) for name in names]
        weights = [modules[name].weight.detach().float().cpu() for name in names]
        inputs = weights[0].shape[0 if parts[0].transposed else 1]
        buffer = np.empty((sum(w.shape[0] for w in weights), weights[0].shape[1]), np.float32)
        views, first = [], 0
        for name, weight in zip(names, weights, strict=True):
            view = buffer[first : first + weight.shape[0]]
            view[...] = weight.numpy()
            first += weight.shape[0]
            views.append(view)
            self.tensors[f"{name}.weight"] = view
        group = LinearGroup(parts, inputs, state=state, packed=can_pack(self.dtype, self._device))
        self.groups.append(group)
        self._fused.append([buffer])
        for index, name in enumerate(names):
            _replace(self._model, name, PerturbedLinear(group, index))

    def freeze_head(self) -> None:
        """Pack a tied output head, whose product is the largest of a decode step."""
        head = self._model.get_output_embeddings()
        name = next((n for n, m in self._model.named_modules() if m is head), None)
        if name is None or not is_linear(head) or isinstance(head, Conv1D):
            return
        weight = head.weight.detach()
        if can_pack(weight.dtype, weight.device):
            _replace(self._model, name, FrozenLinear(weight, head.bias, packed=True))

    def refresh(self, device: torch.device) -> None:
        """Round the centre into the live weights (float32 on the CPU reads the centre itself)."""
        for group, (buffer,) in zip(self.groups, self._fused, strict=True):
            weight = torch.from_numpy(buffer).to(device=device, dtype=self.dtype)
            group.weight.set(weight.T if group.parts[0].transposed else weight)

    def set_members(self, members: Sequence[Member], *, sigma: float, centre: Centre) -> None:
        """Make the factors of every pair among ``members`` and remember each member's pair and scale."""
        pairs = sorted({(m.generation, m.pair) for m in members if m.sign})
        column = {pair: index for index, pair in enumerate(pairs)}
        scale = sigma / math.sqrt(centre.rank)
        self._pairs = np.array([column.get((m.generation, m.pair), 0) for m in members], np.int32)
        self._scales = np.array([m.sign * scale for m in members], np.float32)
        for group in self.groups:
            group.factors = self._factors(group, pairs, centre) if pairs else None

    def _factors(self, group: LinearGroup, pairs: list[tuple[int, int]], centre: Centre) -> Factors:
        outputs, inputs = [], []
        for part in group.parts:
            a, b = centre.factors[f"{part.name}.weight"].fill(pairs)
            outputs.append((b if part.transposed else a).transpose(0, 2, 1))
            inputs.append((a if part.transposed else b).transpose(0, 2, 1))
        return Factors(
            torch.from_numpy(np.concatenate(outputs, axis=2)).to(self._device, self.dtype),
            torch.from_numpy(np.stack(inputs, axis=1)).to(self._device, self.dtype),
        )

    def to(self, device: torch.device) -> None:
        """Where live weights and factors live from now on."""
        self._device = device
        self.refresh(device)

    def set_rows(self, members: np.ndarray, heads: np.ndarray | None = None) -> None:
        """Say which member (index into ``set_members``) each row of the next passes belongs to."""
        self.state.rows = self._rows(members)
        self.head_state.rows = self._rows(members if heads is None else heads)

    def _rows(self, members: np.ndarray) -> Rows:
        scales = self._scales[members]
        return Rows(self._pairs[members], scales, bool(scales.any()))


def _by_layout(names: list[str], modules: dict[str, nn.Module]) -> list[list[str]]:
    """Conv1D layers are stored (in, out) and cannot be stacked along their outputs: each stands alone."""
    if any(isinstance(modules[name], Conv1D) for name in names):
        return [[name] for name in names]
    return [names]


def _part(name: str, module: Any, dtype: torch.dtype, device: torch.device) -> Part:
    transposed = isinstance(module, Conv1D)
    bias = None if module.bias is None else module.bias.detach().to(device, dtype)
    return Part(name, module.weight.shape[1 if transposed else 0], transposed, bias)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def _pattern(name: str) -> str:
    """A parameter name with its layer numbers replaced by ``*``."""
    return ".".join("*" if piece.isdigit() else piece for piece in name.split("."))


def _reason(owner: nn.Module, parameter: Tensor, called: bool) -> str:
    if isinstance(owner, nn.Embedding):
        return "embedding"
    if parameter.ndim == 1:
        return "bias or norm (one-dimensional)"
    if is_linear(owner):
        return "linear layer not run on every token (an expert, or unused)" if not called else "tied weight"
    return f"{parameter.ndim}-dimensional tensor of {type(owner).__name__}"
