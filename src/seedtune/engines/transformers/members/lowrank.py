"""Low-rank perturbation: A·Bᵀ/√r beside every linear weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from seedtune.engines.transformers.members.linear_members import LinearMembers
from seedtune.engines.transformers.members.population_linear import Factors, LinearGroup
from seedtune.engines.transformers.members.weight_format import as_tensor
from seedtune.numerics.weights import factors


class LowRank(LinearMembers):
    """Members whose factors are drawn for every job."""

    def _draw(self, pairs: Sequence[tuple[int, int]]) -> list[Factors]:
        return [self._factors(group, pairs) for group in self.groups]

    def _factors(self, group: LinearGroup, pairs: Sequence[tuple[int, int]]) -> Factors:
        outputs, inputs = [], []
        for part in group.parts:
            a, b = factors(self.weights, f"{part.name}.weight", pairs)
            outputs.append(as_tensor(b if part.transposed else a).transpose(1, 2))
            inputs.append(as_tensor(a if part.transposed else b).transpose(1, 2))
        a, b = (x.to(self._place.device, self._place.dtype) for x in (torch.cat(outputs, 2), torch.stack(inputs, 1)))
        return Factors(a, b, group.ends)
