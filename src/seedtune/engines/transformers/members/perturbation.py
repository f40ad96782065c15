"""The protocol for ways to perturb a model: from members to live weights (or to the terms beside them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.transformers.members.population_linear import ProductForm
from seedtune.errors import ModelError
from seedtune.numerics.kernels.base import Kernels
from seedtune.numerics.kernels.select import kernels_for
from seedtune.numerics.noise import Noise
from seedtune.numerics.weights import Weights
from seedtune.types import Coverage, Member, Update


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """The format of live weights: their type, their device, and how they are multiplied."""

    dtype: torch.dtype
    device: torch.device
    form: ProductForm


class Perturbation(Protocol):
    """A model that holds the current weights, or those of any members that are set."""

    coverage: Coverage
    weights: Weights

    def install(self, model: Any) -> None:
        """Take over the model, whose parameters have their final precision and device, and write weights into it."""
        ...

    def sync(self, step: Update | None = None) -> None:
        """Follow changed current weights; with a ``step`` use the current weights moved by it, until the next ``sync``.

        The current weights themselves take no step.
        """
        ...

    def batches(self, members: Sequence[Member]) -> list[list[int]]:
        """Return batches: the positions of ``members`` that can be evaluated together."""
        ...

    def set_members(self, members: Sequence[Member], batch: Sequence[int], *, sigma: float) -> None:
        """Prepare a batch; ``set_rows`` refers to its members by their positions in ``members``."""
        ...

    def set_rows(self, members: np.ndarray, heads: np.ndarray | None = None) -> None:
        """Assign each row of the next forward pass (and each row of the output head, if fewer) to a member."""
        ...


def as_weights(tensor: Tensor) -> Any:
    """Return a tensor as `Weights` hold it, in place: numpy on the CPU (bfloat16 as uint16), itself on a GPU."""
    plain = tensor.detach()
    if plain.device.type != "cpu":
        return plain
    return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()


def as_tensor(weights: Any) -> Tensor:
    """Return the result of `as_weights` as a tensor again, in place."""
    if isinstance(weights, Tensor):
        return weights
    plain = torch.from_numpy(weights)
    return plain.view(torch.bfloat16) if plain.dtype == torch.uint16 else plain


def kernels_of(device: torch.device) -> Kernels:
    """Return the kernels for weights on that device."""
    kernels: Any = kernels_for(str(device))
    return kernels


def weights_dtype(noise: Noise, dtype: torch.dtype) -> torch.dtype:
    """Return the element type of the current weights of a model that runs in ``dtype``."""
    if noise.weights_dtype == "float32":
        return torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(
            f"weights_dtype=model needs a model in float32, bfloat16 or float16, not {dtype}. "
            "Use weights_dtype=float32."
        )
    return dtype
