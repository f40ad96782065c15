"""RMS norms as one kernel instead of six operations, if a probe shows that the model's norm is plain."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seedtune.engines.transformers.cpu_kernels import rms_norm
from seedtune.engines.transformers.cpu_kernels.layer_steps import Norm
from seedtune.engines.transformers.device import has_kernels
from seedtune.engines.transformers.fused.equivalence import alike
from seedtune.engines.transformers.members.population_linear import bits


class FusedNorm(nn.Module):
    """Computes weight·x/√(mean x² + eps) over the last dimension, on the CPU in float32 or bfloat16."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps
        self.norm = Norm(bits(weight.detach()), np.float32(eps))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every row of ``x`` (..., n)."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty_like(rows)
        rms_norm.rms_norm(bits(y), bits(rows), self.norm.weight, self.eps)
        return y.view(x.shape)


@torch.no_grad()
def fused_norm(module: Any) -> FusedNorm | None:
    """Return a module that behaves as a plain RMS norm on a probe in its fused form; None for every other module.

    Summation order flips few bits; another formula, or one that rounds elsewhere, many.
    """
    parameters = dict(module.named_parameters())
    eps = next((vars(module)[key] for key in ("variance_epsilon", "eps") if key in vars(module)), None)
    if not type(module).__name__.endswith("RMSNorm") or set(parameters) != {"weight"} or eps is None:
        return None
    weight = parameters["weight"]
    if not has_kernels(weight.device, weight.dtype):
        return None
    size, fused = weight.numel(), FusedNorm(weight, float(eps))
    probe = torch.linspace(-3.0, 2.0, 2 * size).view(2, size)
    expected = copy.deepcopy(module).float()(probe)
    scale = torch.rsqrt(probe.square().mean(-1, keepdim=True) + eps)
    plain = torch.allclose(weight.float() * (probe * scale), expected, rtol=1e-5, atol=1e-6)
    rounded = probe.to(weight.dtype)
    return fused if plain and (rounded.dtype == torch.float32 or alike(fused(rounded), module(rounded))) else None
