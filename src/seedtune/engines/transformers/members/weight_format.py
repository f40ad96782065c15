"""Formats of weights: the live ones that a model computes with, and the exact current ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seedtune.engines.transformers.device import dtype_name, home_of
from seedtune.engines.transformers.members.population_linear import ProductForm, bits
from seedtune.errors import ModelError
from seedtune.numerics import tensor_file
from seedtune.numerics.noise import Noise
from seedtune.numerics.weights import WeightArray


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """The live weights' type, device and products; the current weights' type, and the folder they are mapped in."""

    dtype: torch.dtype
    device: torch.device
    form: ProductForm
    weights_dtype: torch.dtype
    folder: Path | None = None

    @property
    def home(self) -> torch.device:
        """Where the current weights are."""
        return home_of(self.device)

    @property
    def staged(self) -> bool:
        """Whether members are drawn at home and copied to the device."""
        return self.home != self.device

    def empty(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, WeightArray]:
        """Return new arrays for current weights, in memory or in a mapped file."""
        if self.folder is not None:
            return tensor_file.mapped(self.folder, shapes, dtype_name(self.weights_dtype))
        dtype, device = self.weights_dtype, self.home
        return {name: as_weights(torch.empty(shape, dtype=dtype, device=device)) for name, shape in shapes.items()}


def as_weights(tensor: Tensor) -> Any:
    """Return a tensor as `Weights` hold it, in place: numpy on the CPU (bfloat16 as uint16), itself on a GPU."""
    return bits(tensor.detach()) if tensor.device.type == "cpu" else tensor.detach()


def as_tensor(weights: Any) -> Tensor:
    """Return the result of `as_weights` as a tensor again, in place."""
    if isinstance(weights, Tensor):
        return weights
    plain = torch.from_numpy(weights)
    return plain.view(torch.bfloat16) if plain.dtype == torch.uint16 else plain


def weights_dtype(noise: Noise, dtype: torch.dtype) -> torch.dtype:
    """Return the element type of the current weights of a model that runs in ``dtype``.

    Raises ModelError for ``weights_dtype=model`` with another type than float32, bfloat16 and float16.
    """
    if noise.weights_dtype == "float32":
        return torch.float32
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ModelError(
            f"weights_dtype=model needs a model in float32, bfloat16 or float16, not {dtype}. "
            "Use weights_dtype=float32."
        )
    return dtype
