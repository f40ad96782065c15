"""Gaussian perturbation: a member's weights are written over the live ones, straight from the current weights.

    live = round(θ + s·σ·ε)     for every element of every trainable tensor, tied weights once

Nothing is ever restored: the next member, or the unperturbed model with its own rounding, is written from the current
weights again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.transformers.members.coverage import coverage_of
from seedtune.engines.transformers.members.packed_linear import PackedGroup, pack_layers
from seedtune.engines.transformers.members.perturbation import (
    WeightFormat,
    as_tensor,
    as_weights,
    kernels_of,
    weights_dtype,
)
from seedtune.engines.transformers.members.population_linear import ProductForm
from seedtune.engines.transformers.tracing import Trace
from seedtune.numerics import tensor_file
from seedtune.numerics.noise import Noise
from seedtune.numerics.trainable import select
from seedtune.numerics.weights import Anchor, WeightArray, Weights
from seedtune.types import UNPERTURBED, Member, Update


class Gaussian:
    """The current weights beside the model, and the member that the model holds now."""

    def __init__(
        self, model: Any, trace: Trace, *, noise: Noise, anchor: Anchor, place: WeightFormat, folder: Path | None = None
    ) -> None:
        self._trace, self._place = trace, place
        parameters = dict(model.named_parameters())
        self.names = select(parameters, noise.trainable, noise.freeze)
        chosen = set(self.names)
        self.coverage = coverage_of(model, chosen, trainable=chosen, called=())
        kept = weights_dtype(noise, place.dtype)
        own = {name: parameters[name].detach() for name in self.names}
        tensors = _copies(own, kept, place.device) if folder is None else _mapped(own, kept, folder)
        self.weights = Weights(tensors, noise, kernels=kernels_of(place.device), anchor=anchor)
        self._folder, self._perturbed_from = folder, self.weights
        self._live: dict[str, WeightArray] = {}
        self._packed: list[PackedGroup] = []
        self._now: tuple[Member, float] | None = None

    def install(self, model: Any) -> None:
        """Find the live weights, and write the unperturbed member over them."""
        if self._place.form != ProductForm():
            self._packed = pack_layers(model, self._trace, set(self.names), self._place.form)
        parameters = dict(model.named_parameters())
        self._live = {name: as_weights(parameters[name]).reshape(-1) for name in self.names}
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
            place = self.weights.part(self._again())
            place.apply(step)
            self._perturbed_from = place

    def _again(self) -> dict[str, WeightArray]:
        """Return a copy of the current weights' arrays."""
        own = {name: as_tensor(array) for name, array in self.weights.tensors.items()}
        dtype = next(iter(own.values())).dtype
        return _copies(own, dtype, self._place.device) if self._folder is None else _mapped(own, dtype, self._folder)

    def batches(self, members: Sequence[Member]) -> list[list[int]]:
        """Return each member alone: members do not share weights."""
        return [[position] for position in range(len(members))]

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
            self._perturbed_from.perturb(name, member, sigma, live)
        for group in self._packed:
            if group.changes and self._place.form.copied:
                group.pack()
        self._now = (member, sigma)

    def set_rows(self, members: np.ndarray, heads: np.ndarray | None = None) -> None:
        """Do nothing: all rows belong to one member."""


def _copies(tensors: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> dict[str, WeightArray]:
    """Copy tensors to new in-memory arrays for the current weights."""
    return {name: as_weights(t.to(device, dtype, copy=True).contiguous()) for name, t in tensors.items()}


def _mapped(tensors: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> dict[str, WeightArray]:
    """Copy tensors to arrays in a mapped file for the current weights."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    arrays = tensor_file.mapped(folder, shapes, str(dtype).removeprefix("torch."))
    for name, tensor in tensors.items():
        arrays[name][...] = as_weights(tensor.to(dtype))
    return arrays
