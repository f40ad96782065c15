"""What the engine asks of a way to perturb a model: members in, live weights (or what lies beside them) out."""

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
from seedtune.numerics.weights import Centre
from seedtune.types import Coverage, Member, Update


@dataclass(frozen=True, slots=True)
class Place:
    """How live weights are kept: their type, their device, and how they are multiplied."""

    dtype: torch.dtype
    device: torch.device
    form: ProductForm


class Perturbation(Protocol):
    """A model whose weights follow the centre, and become any member's when asked."""

    coverage: Coverage
    centre: Centre

    def attach(self, model: Any) -> None:
        """Take the model, whose parameters now have their final precision and place, and follow the centre."""
        ...

    def refresh(self, step: Update | None = None) -> None:
        """Follow the centre, which has moved; with a ``step`` follow where that would take it, until the next refresh.

        The centre itself takes no step.
        """
        ...

    def batches(self, members: Sequence[Member]) -> list[list[int]]:
        """Which positions of ``members`` can answer in one batch."""
        ...

    def become(self, members: Sequence[Member], batch: Sequence[int], *, sigma: float) -> None:
        """Prepare a batch; ``set_rows`` names its members by their positions in ``members``."""
        ...

    def set_rows(self, members: np.ndarray, heads: np.ndarray | None = None) -> None:
        """Whose each row of the next forward pass is (and each row of the output head, if fewer)."""
        ...


def as_weights(tensor: Tensor) -> Any:
    """A tensor as the centre holds it, in place: numpy on the CPU (bfloat16 as uint16), itself on a GPU."""
    plain = tensor.detach()
    if plain.device.type != "cpu":
        return plain
    return (plain.view(torch.uint16) if plain.dtype == torch.bfloat16 else plain).numpy()


def as_tensor(weights: Any) -> Tensor:
    """The other way round, in place."""
    if isinstance(weights, Tensor):
        return weights
    plain = torch.from_numpy(weights)
    return plain.view(torch.bfloat16) if plain.dtype == torch.uint16 else plain


def kernels_of(device: torch.device) -> Kernels:
    """What a centre on that device computes with."""
    kernels: Any = kernels_for(str(device))
    return kernels


def centre_dtype(noise: Noise, dtype: torch.dtype) -> torch.dtype:
    """The element type of the centre of a model that runs in ``dtype``."""
    if noise.master == "float32":
        return torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(f"master=none needs a model in float32, bfloat16 or float16, not {dtype}. Use master=float32.")
    return dtype
