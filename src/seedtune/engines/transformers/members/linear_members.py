"""Members in one batch: a model's linear layers become population layers, which add each row's own perturbation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from seedtune.engines.transformers.members.coverage import coverage_of, with_tied_head
from seedtune.engines.transformers.members.population_linear import (
    GroupNoise,
    LinearGroup,
    Part,
    ProductForm,
    RowState,
    replace_layers,
)
from seedtune.engines.transformers.members.weight_format import WeightFormat, as_tensor, as_weights
from seedtune.engines.transformers.tracing import (
    EXPERT,
    Trace,
    group_calls,
    is_linear,
    shared_weights,
    weight_of,
)
from seedtune.errors import ConfigError
from seedtune.numerics.kernels.select import kernels_for
from seedtune.numerics.noise import Noise, amplitude
from seedtune.numerics.trainable import select
from seedtune.numerics.weights import Anchor, WeightArray, Weights
from seedtune.types import Member, Update


class LinearMembers(ABC):
    """The groups of a model, the current weights they read, and the noise of the job in flight.

    Raises ConfigError if ``trainable`` selects no weight of a linear layer.
    """

    together = True
    recordable = True
    """Whether a decode step launches the same work whichever members its rows belong to."""

    def __init__(self, model: Any, trace: Trace, *, noise: Noise, anchor: Anchor, place: WeightFormat) -> None:
        self.state, self.head_state = RowState(), RowState()
        self._model, self._place = model, place
        parameters = {name: id(p) for name, p in model.named_parameters()}
        trainable = select(parameters, noise.trainable)
        modules = dict(model.named_modules())
        head = model.get_output_embeddings()
        allowed = {parameters[name] for name in trainable} - shared_weights(modules.values())
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
                f"trainable={list(noise.trainable)} leaves no weight of a linear "
                f"layer, which is all that {noise.perturbation} perturbs. Select some, or use perturbation=gaussian."
            )
        called = [call.name for call in trace.calls]
        self.coverage = with_tied_head(coverage_of(model, chosen, trainable=set(trainable), called=called), model)
        self.groups: list[LinearGroup] = []
        self._fused: list[Tensor] = []
        tensors: dict[str, WeightArray] = {}
        for names in group_calls(calls):
            state = self.head_state if modules[names[0]] is head else self.state
            self._take(names, [modules.pop(name) for name in names], state, tensors)
        rest = {*called, *filter(EXPERT.search, modules)}
        self._rest = [name for name, module in modules.items() if name in rest and is_linear(module)]
        self.weights = Weights(tensors, noise, kernels=kernels_for(str(place.home)), anchor=anchor)
        self.version = 0
        """Numbers the memory of live weights and members, which a call of ``sync`` or ``set_members`` replaces."""

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
        self.groups.append(replace_layers(self._model, parts, inputs, state=state, form=self._place.form))
        self._fused.append(buffer)

    def _buffer(self, weights: list[Tensor]) -> Tensor:
        """Concatenate the weights by rows in the storage dtype; a single weight that has it is used without a copy."""
        first, place = weights[0], self._place
        same = first.dtype == place.weights_dtype and first.device == place.home and place.folder is None
        if len(weights) == 1 and same and first.is_contiguous():
            return first.detach()
        buffer = as_tensor(place.empty({"": (sum(w.shape[0] for w in weights), first.shape[1])})[""])
        for weight, target in zip(weights, buffer.split([w.shape[0] for w in weights]), strict=True):
            target.copy_(weight.detach())
        return buffer

    def install(self, model: Any) -> None:
        """Replace the products of unperturbed linear layers by our own; write the live weights."""
        form = self._place.form
        for name in self._rest if form != ProductForm() else ():
            layer = model.get_submodule(name)
            weight = weight_of(layer)
            parts = [Part(name, len(weight), False, layer.bias)]
            replace_layers(model, parts, weight.shape[1], state=RowState(), form=form).set(weight)
        self.sync()

    def sync(self, step: Update | None = None) -> None:
        """Round the current weights into the live ones, or share them if type and device are the same.

        A ``step`` is applied to a copy of one group's weights at a time.  Only if live and current weights are shared
        are the copies kept, as live weights, until the next ``sync``.
        """
        self.version += 1
        for group, weights in zip(self.groups, self._fused, strict=True):
            buffer = weights if step is None else self._stepped(group, weights, step)
            weight = buffer.to(device=self._place.device, dtype=self._place.dtype)
            group.set(weight.T if group.parts[0].transposed else weight)

    def _stepped(self, group: LinearGroup, weights: Tensor, step: Update) -> Tensor:
        """Return a copy of a group's part of the current weights, moved by ``step``."""
        names = [f"{part.name}.weight" for part in group.parts]
        copy = weights.clone()
        rows = copy.split([self.weights.tensors[name].shape[0] for name in names])
        self.weights.part({name: as_weights(tensor) for name, tensor in zip(names, rows, strict=True)}).apply(step)
        return copy

    def set_members(self, members: Sequence[Member], batch: Sequence[int], *, sigma: float) -> None:
        """Draw the noise of every pair among ``members``, and record each member's pair and scale."""
        self.version += 1
        pairs = sorted({(m.generation, m.pair) for m in members if m.sign})
        column = {pair: index for index, pair in enumerate(pairs)}
        noise = self.weights.noise
        scale = amplitude(sigma, rank=noise.rank, subspaces=noise.subspaces)
        self._pairs = np.array([column.get((m.generation, m.pair), 0) for m in members], np.int32)
        self._scales = np.array([m.sign * scale for m in members], np.float32)
        drawn = self._draw(pairs) if pairs else [None] * len(self.groups)
        for group, noise_of_group in zip(self.groups, drawn, strict=True):
            group.noise = noise_of_group

    @abstractmethod
    def _draw(self, pairs: Sequence[tuple[int, int]]) -> Sequence[GroupNoise | None]:
        """Return every group's noise of these (generation, pair)."""

    def set_rows(self, members: np.ndarray, heads: np.ndarray | None = None, *, steady: bool = False) -> None:
        """Assign each row of the next passes to a member (index into ``set_members``'s).

        With ``steady`` these are decode steps of a device, which find the assignment in the same memory every time.
        """
        for state, rows in ((self.state, members), (self.head_state, members if heads is None else heads)):
            state.set(self._pairs[rows], self._scales[rows])
            if steady and state.active and any(group.state is state for group in self.groups):
                state.keep_on(self._place.device)

    def begin_step(self) -> None:
        """Prepare for a decode step, whose launches may be recorded."""
        self.state.begin_step()
        self.head_state.begin_step()


def _part(name: str, module: Any, place: WeightFormat) -> Part:
    transposed = isinstance(module, Conv1D)
    bias = None if module.bias is None else module.bias.detach().to(place.device, place.dtype)
    return Part(name, len(weight_of(module)), transposed, bias)
