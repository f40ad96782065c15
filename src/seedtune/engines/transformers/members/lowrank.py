"""Low-rank perturbation: a model's linear layers become population layers, all members in one batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from seedtune.engines.transformers.members.coverage import coverage_of, with_tied_head
from seedtune.engines.transformers.members.perturbation import (
    WeightFormat,
    as_tensor,
    as_weights,
    kernels_of,
    weights_dtype,
)
from seedtune.engines.transformers.members.population_linear import (
    Factors,
    FrozenLinear,
    LinearGroup,
    Part,
    PerturbedLinear,
    ProductForm,
    RowPerturbations,
    RowState,
)
from seedtune.engines.transformers.tracing import EXPERT, Trace, group_calls, is_linear, replace_module
from seedtune.errors import ConfigError
from seedtune.numerics import tensor_file
from seedtune.numerics.noise import Noise, amplitude
from seedtune.numerics.trainable import select
from seedtune.numerics.weights import Anchor, WeightArray, Weights, factors
from seedtune.types import Member, Update


class LowRank:
    """The groups of a model, the current weights they read, and the factors of the job in flight."""

    def __init__(
        self, model: Any, trace: Trace, *, noise: Noise, anchor: Anchor, place: WeightFormat, folder: Path | None = None
    ) -> None:
        self.state, self.head_state = RowState(), RowState()
        self._model, self._place, self._folder = model, place, folder
        self._kept = weights_dtype(noise, place.dtype)
        parameters = {name: id(p) for name, p in model.named_parameters()}
        trainable = select(parameters, noise.trainable, noise.freeze)
        modules = dict(model.named_modules())
        head = model.get_output_embeddings()
        tied = _shared(modules)
        allowed = {parameters[name] for name in trainable} - tied
        calls = [
            call
            for call in trace.calls
            if not EXPERT.search(call.name)
            and call.rows == (trace.heads if modules[call.name] is head else trace.tokens)
            and id(modules[call.name].weight) in allowed
        ]
        chosen = {f"{call.name}.weight" for call in calls}
        if not chosen:
            raise ConfigError(
                f"trainable={list(noise.trainable)} without freeze={list(noise.freeze)} leaves no weight of a linear "
                "layer, which is all that lowrank perturbs. Select some, or use perturbation=gaussian."
            )
        called = [call.name for call in trace.calls]
        self.coverage = with_tied_head(coverage_of(model, chosen, trainable=set(trainable), called=called), model)
        self.groups: list[LinearGroup] = []
        self._fused: list[Tensor] = []
        tensors: dict[str, WeightArray] = {}
        for names in group_calls(calls):
            for same in _by_layout(names, modules):
                state = self.head_state if modules[same[0]] is head else self.state
                self._take(same, [modules.pop(name) for name in same], state, tensors)
        rest = {*called, *filter(EXPERT.search, modules)}
        self._rest = [name for name, module in modules.items() if name in rest and is_linear(module)]
        self.weights = Weights(tensors, noise, kernels=kernels_of(place.device), anchor=anchor)

    def _take(self, names: list[str], layers: list[Any], state: RowState, tensors: dict[str, WeightArray]) -> None:
        """Move the layers' weights into one buffer of the current weights and replace the layers by perturbed ones."""
        parts = [_part(name, layer, self._place) for name, layer in zip(names, layers, strict=True)]
        inputs = layers[0].weight.shape[0 if parts[0].transposed else 1]
        buffer = self._buffer([layer.weight for layer in layers])
        first = 0
        for name, layer in zip(names, layers, strict=True):
            rows = layer.weight.shape[0]
            tensors[f"{name}.weight"] = as_weights(buffer[first : first + rows])
            first += rows
            layer.weight = None  # the buffer has it: two copies of a large model may not fit
        group = LinearGroup(parts, inputs, state=state, form=self._place.form)
        self.groups.append(group)
        self._fused.append(buffer)
        for index, name in enumerate(names):
            replace_module(self._model, name, PerturbedLinear(group, index))

    def _buffer(self, weights: list[Tensor]) -> Tensor:
        """Concatenate the weights by rows in the storage dtype; a single weight that has it is used without a copy."""
        same = weights[0].dtype == self._kept and weights[0].device == self._place.device and self._folder is None
        if len(weights) == 1 and same and weights[0].is_contiguous():
            return weights[0].detach()
        buffer = self._empty(sum(w.shape[0] for w in weights), weights[0].shape[1])
        for weight, target in zip(weights, buffer.split([w.shape[0] for w in weights]), strict=True):
            target.copy_(weight.detach())
        return buffer

    def _empty(self, rows: int, columns: int) -> Tensor:
        """Return a new buffer of current weights, in memory or in a mapped file."""
        if self._folder is None:
            return torch.empty(rows, columns, dtype=self._kept, device=self._place.device)
        kind = str(self._kept).removeprefix("torch.")
        return as_tensor(tensor_file.mapped(self._folder, {"": (rows, columns)}, kind)[""])

    def install(self, model: Any) -> None:
        """Replace the products of unperturbed linear layers by our own; write the live weights."""
        for name in self._rest if self._place.form != ProductForm() else ():
            layer = model.get_submodule(name)
            weight = layer.weight.detach().T if isinstance(layer, Conv1D) else layer.weight.detach()
            replace_module(model, name, FrozenLinear(weight, layer.bias, self._place.form))
        self.sync()

    def sync(self, step: Update | None = None) -> None:
        """Round the current weights into the live ones, or share them if type and device are the same.

        A ``step`` is applied to a copy of one group's weights at a time.  Only if live and current weights are shared
        are the copies kept, as live weights, until the next ``sync``.
        """
        for group, weights in zip(self.groups, self._fused, strict=True):
            buffer = weights if step is None else self._stepped(group, weights, step)
            weight = buffer.to(device=self._place.device, dtype=self._place.dtype)
            group.weight.set(weight.T if group.parts[0].transposed else weight)

    def _stepped(self, group: LinearGroup, weights: Tensor, step: Update) -> Tensor:
        """Return a copy of a group's part of the current weights, moved by ``step``."""
        names = [f"{part.name}.weight" for part in group.parts]
        copy = weights.clone()
        rows = copy.split([self.weights.tensors[name].shape[0] for name in names])
        self.weights.part({name: as_weights(its) for name, its in zip(names, rows, strict=True)}).apply(step)
        return copy

    def batches(self, members: Sequence[Member]) -> list[list[int]]:
        """Return all members together."""
        return [list(range(len(members)))]

    def set_members(self, members: Sequence[Member], batch: Sequence[int], *, sigma: float) -> None:
        """Create the factors of every pair among ``members`` and record each member's pair and scale."""
        pairs = sorted({(m.generation, m.pair) for m in members if m.sign})
        column = {pair: index for index, pair in enumerate(pairs)}
        noise = self.weights.noise
        scale = amplitude(sigma, rank=noise.rank, subspaces=noise.subspaces)
        self._pairs = np.array([column.get((m.generation, m.pair), 0) for m in members], np.int32)
        self._scales = np.array([m.sign * scale for m in members], np.float32)
        for group in self.groups:
            group.factors = self._factors(group, pairs) if pairs else None

    def _factors(self, group: LinearGroup, pairs: list[tuple[int, int]]) -> Factors:
        outputs, inputs = [], []
        for part in group.parts:
            a, b = factors(self.weights, f"{part.name}.weight", pairs)
            outputs.append(as_tensor(b if part.transposed else a).transpose(1, 2))
            inputs.append(as_tensor(a if part.transposed else b).transpose(1, 2))
        a, b = torch.cat(outputs, 2), torch.stack(inputs, 1)
        return Factors(a.to(self._place.dtype), b.to(self._place.dtype))

    def set_rows(self, members: np.ndarray, heads: np.ndarray | None = None) -> None:
        """Assign each row of the next passes to a member (index into ``set_members``'s)."""
        self.state.rows = self._rows(members)
        self.head_state.rows = self._rows(members if heads is None else heads)

    def _rows(self, members: np.ndarray) -> RowPerturbations:
        scales = self._scales[members]
        return RowPerturbations(self._pairs[members], scales, bool(scales.any()))


def _shared(modules: dict[str, nn.Module]) -> set[int]:
    """Return weights of an embedding, and weights of two linear layers: neither belongs to one linear layer only."""
    linear = [id(m.weight) for m in modules.values() if is_linear(m)]
    twice = {weight for weight, count in Counter(linear).items() if count > 1}
    return twice | {id(p) for m in modules.values() if isinstance(m, nn.Embedding) for p in m.parameters()}


def _by_layout(names: list[str], modules: dict[str, nn.Module]) -> list[list[str]]:
    """Group layers by layout: Conv1D layers are stored (in, out), so they cannot be stacked and stay alone."""
    if any(isinstance(modules[name], Conv1D) for name in names):
        return [[name] for name in names]
    return [names]


def _part(name: str, module: Any, place: WeightFormat) -> Part:
    transposed = isinstance(module, Conv1D)
    bias = None if module.bias is None else module.bias.detach().to(place.device, place.dtype)
    return Part(name, module.weight.shape[1 if transposed else 0], transposed, bias)
