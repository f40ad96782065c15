"""Flipout perturbation: U ⊙ (r sᵀ) beside every linear weight, of full rank (arXiv 2606.02857).

    y = x·Wᵀ + s·σ·(rₚ ⊙ U(sₚ ⊙ x))     for a row of the member (pair p, sign s)

One U serves all members of a generation that share it, so that the whole batch costs one more product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.transformers.cpu_kernels import member_rows
from seedtune.engines.transformers.device import has_kernels
from seedtune.engines.transformers.members.linear_members import LinearMembers
from seedtune.engines.transformers.members.population_linear import (
    LiveWeight,
    Part,
    RowState,
    bits,
)
from seedtune.engines.transformers.members.weight_format import WeightFormat, as_tensor
from seedtune.engines.transformers.tracing import Trace
from seedtune.numerics.noise import Noise
from seedtune.numerics.weights import Anchor, signs

Shared = tuple[int, int]
"""A generation, and which of its shared noises."""


@dataclass(frozen=True, slots=True)
class PartSigns:
    """One layer's signs, -1 and 1 in the model's dtype: ``outputs`` (P, out) and ``inputs`` (P, in)."""

    outputs: Tensor
    inputs: Tensor

    def flipped(self, x: Tensor, rows: np.ndarray, state: RowState) -> Tensor:
        """Return the inputs (rows, in) of some rows with their members' signs."""
        out = x.new_empty(rows.size, x.shape[1])
        member_rows.flip(bits(out), bits(x), signs=bits(self.inputs), rows=rows, pairs=state.pairs)
        return out

    def add(self, y: Tensor, z: Tensor, rows: np.ndarray, state: RowState, *, first: int) -> None:
        """Add scale·r ⊙ z to some rows of the group's outputs ``y`` (all rows, all outputs), from ``first`` on."""
        options: dict[str, Any] = {"rows": rows, "pairs": state.pairs, "scales": state.scales, "first": first}
        member_rows.add_flipped(bits(y), bits(z), signs=bits(self.outputs), **options)


class Flips:
    """One group's noise: each layer's signs of a job's pairs, and the products by each U that these share.

    ``shared`` (P,) names the U of every pair.
    """

    def __init__(
        self, parts: Sequence[PartSigns], products: Sequence[Sequence[LiveWeight]], shared: np.ndarray
    ) -> None:
        self._parts, self._products, self._shared = parts, products, shared
        signs = parts[0].outputs
        if not has_kernels(signs.device, signs.dtype):  # then all layers' signs are read at once
            self._outputs = torch.cat([part.outputs for part in parts], 1)
            self._inputs = torch.stack([part.inputs for part in parts], 1)

    def add(self, y: Tensor, x: Tensor, rows: RowState) -> None:
        """Add s·σ·r ⊙ U(s ⊙ x) to every perturbed row."""
        if not has_kernels(y.device, y.dtype):
            self._add_by_torch(y, x, rows)
            return
        sharing = rows.sharing(self._shared, len(self._products))
        for own, products in zip(sharing, self._products, strict=True):
            first = 0
            for part, product in zip(self._parts, products, strict=True):
                if own.size:
                    part.add(y, product(part.flipped(x, own, rows)), own, rows, first=first)
                first += part.outputs.shape[1]

    def _add_by_torch(self, y: Tensor, x: Tensor, rows: RowState) -> None:
        sharing = rows.sharing_on(y.device, self._shared, len(self._products))
        for (own, pairs, scales), products in zip(sharing, self._products, strict=True):
            if own.numel():
                flipped = x[own, None] * self._inputs[pairs]
                z = torch.cat([product(flipped[:, index]) for index, product in enumerate(products)], -1)
                y.index_add_(0, own, (z * self._outputs[pairs] * scales).to(y.dtype))


class Flipout(LinearMembers):
    """Members that share each generation's normals, which are kept as a second copy of the live weights."""

    recordable = False

    def __init__(self, model: Any, trace: Trace, *, noise: Noise, anchor: Anchor, place: WeightFormat) -> None:
        super().__init__(model, trace, noise=noise, anchor=anchor, place=place)
        self._held: dict[Shared, list[list[LiveWeight]]] = {}

    def _draw(self, pairs: Sequence[tuple[int, int]]) -> list[Flips]:
        shared = [(generation, pair % self.weights.noise.shared_noise) for generation, pair in pairs]
        needed = sorted(set(shared))
        self._hold(needed)
        of_pair = np.array([needed.index(one) for one in shared], np.int32)
        products = zip(*(self._held[one] for one in needed), strict=True)
        return [
            Flips([self._signs(part, pairs) for part in group.parts], own, of_pair)
            for group, own in zip(self.groups, products, strict=True)
        ]

    def _hold(self, needed: Sequence[Shared]) -> None:
        """Draw the normals that are needed and not held; forget those of other generations first."""
        generations = {generation for generation, _ in needed}
        self._held = {one: products for one, products in self._held.items() if one[0] in generations}
        for one in needed:
            if one not in self._held:
                self._held[one] = [[self._product(part, one) for part in group.parts] for group in self.groups]

    def _product(self, part: Part, shared: Shared) -> LiveWeight:
        """Return U of a layer as (out, in), in the form of the live weights."""
        drawn = self._there(self.weights.shared(f"{part.name}.weight", *shared))
        product = LiveWeight(self._place.form)
        product.set((drawn.T if part.transposed else drawn).contiguous())
        return product

    def _signs(self, part: Part, pairs: Sequence[tuple[int, int]]) -> PartSigns:
        r, s = signs(self.weights, f"{part.name}.weight", pairs)
        outputs, inputs = (s, r) if part.transposed else (r, s)
        return PartSigns(self._there(outputs), self._there(inputs))

    def _there(self, drawn: Any) -> Tensor:
        """Return drawn numbers as the model computes with them."""
        return as_tensor(drawn).to(self._place.device, self._place.dtype)
