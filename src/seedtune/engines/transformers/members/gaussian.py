"""Gaussian perturbation: a member's weights are written over the live ones, straight from the current weights.

    live = round(θ + s·σ·ε)     for every element of every trainable tensor, tied weights once

Nothing is ever restored: the next member, or the unperturbed model with its own rounding, is written from the current
weights again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.transformers.device import has_triton
from seedtune.engines.transformers.members.coverage import coverage_of
from seedtune.engines.transformers.members.population_linear import (
    LinearGroup,
    Part,
    ProductForm,
    RowState,
    replace_layers,
)
from seedtune.engines.transformers.members.weight_format import WeightFormat, as_tensor, as_weights
from seedtune.engines.transformers.tracing import EXPERT, Trace, group_calls, is_linear, weight_of
from seedtune.numerics.kernels.select import kernels_for
from seedtune.numerics.noise import Noise
from seedtune.numerics.trainable import select
from seedtune.numerics.weights import Anchor, WeightArray, Weights
from seedtune.types import UNPERTURBED, Member, Update


class Gaussian:
    """The current weights beside the model, and the member that the model holds now."""

    together = False
    recordable = True
    version = 0

    def __init__(self, model: Any, trace: Trace, *, noise: Noise, anchor: Anchor, place: WeightFormat) -> None:
        self._trace, self._place = trace, place
        parameters = dict(model.named_parameters())
        self.names = select(parameters, noise.trainable)
        chosen = set(self.names)
        self.coverage = coverage_of(model, chosen, trainable=chosen, called=())
        tensors = self._copies({name: parameters[name].detach() for name in self.names})
        self.weights = Weights(tensors, noise, kernels=kernels_for(str(place.home)), anchor=anchor)
        self._perturbed_from = self.weights
        self._live: dict[str, Any] = {}
        self._packed: list[tuple[LinearGroup, Tensor]] = []
        self._now: tuple[Member, float] | None = None

    def _copies(self, tensors: Mapping[str, Tensor]) -> dict[str, WeightArray]:
        """Copy tensors to new arrays for current weights."""
        arrays = self._place.empty({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        for name, tensor in tensors.items():
            as_tensor(arrays[name]).copy_(tensor)
        return arrays

    def install(self, model: Any) -> None:
        """Find the live weights, and write the unperturbed member over them."""
        if self._place.form != ProductForm() or has_triton(self._place.device):
            stacked = self._place.form.copied or has_triton(self._place.device)
            self._packed = pack_layers(model, self._trace, set(self.names), self._place.form, stacked=stacked)
        parameters = dict(model.named_parameters())
        live = {name: parameters[name].detach() for name in self.names}
        self._live = {name: (x if self._place.staged else as_weights(x)).reshape(-1) for name, x in live.items()}
        assert all(parameters[name].is_contiguous() for name in self.names)
        self._write(UNPERTURBED, 0.0)

    def sync(self, step: Update | None = None) -> None:
        """Note that the current weights have changed: the live weights are stale.

        For a ``step``, a second copy of the weights exists until the next ``sync``, in memory or in a mapped file like
        the first: each member is written from it, because drawing the step's noise again for every member would take
        longer.
        """
        self._now = None
        self._perturbed_from = self.weights  # frees an older copy before a new one is created
        if step is not None:
            copies = self._copies({name: as_tensor(array) for name, array in self.weights.tensors.items()})
            place = self.weights.part(copies)
            place.apply(step)
            self._perturbed_from = place

    def set_members(self, members: Sequence[Member], batch: Sequence[int], *, sigma: float) -> None:
        """Write the weights of the batch's only member, unless the model holds them."""
        (position,) = batch
        member = members[position]
        self._write(member, sigma if member.sign else 0.0)

    def _write(self, member: Member, sigma: float) -> None:
        if self._now == (member, sigma):
            return
        self._now = None
        for name, live in self._live.items():
            drawn = as_weights(torch.empty_like(live, device=self._place.home)) if self._place.staged else live
            self._perturbed_from.perturb(name, member, sigma, drawn)
            if self._place.staged:
                live.copy_(as_tensor(drawn))
        for group, buffer in self._packed:
            group.set(buffer)
        self._now = (member, sigma)

    def set_rows(self, members: np.ndarray, heads: np.ndarray | None = None, *, steady: bool = False) -> None:
        """Do nothing: all rows belong to one member."""

    def begin_step(self) -> None:
        """Do nothing: no row has a perturbation of its own."""


def pack_layers(
    model: Any, trace: Trace, trainable: Collection[str], form: ProductForm, *, stacked: bool
) -> list[tuple[LinearGroup, Tensor]]:
    """Replace every plain linear layer by layers of that product form.

    A member is written into the layers' parameters, and the products read packed copies of them, or the plain layout.
    Copies are a second live model and pay from a few tokens on.  With ``stacked`` layers with the same input that the
    traced pass ran lie in one buffer, of which their parameters become views; routed experts, which it ran or did not
    run by chance, stay alone.  Returns the stacks that are ever rewritten, with their buffers.
    """
    changing = {id(p) for name, p in model.named_parameters() if name in trainable}
    modules = {name: module for name, module in model.named_modules() if is_linear(module)}
    called = [call for call in trace.calls if not EXPERT.search(call.name)]
    groups = group_calls(called) if stacked else [[name] for name in dict.fromkeys(call.name for call in called)]
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
