"""RMS norms as one kernel instead of six operations, if a probe shows that the model's norm is plain."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from seedtune.engines.transformers.cpu_kernels import rms_norm
from seedtune.engines.transformers.fused.equivalence import alike
from seedtune.engines.transformers.members.population_linear import bits
from seedtune.engines.transformers.tracing import replace_module


class FusedNorm(nn.Module):
    """Computes weight·x/√(mean x² + eps) over the last dimension, on the CPU in float32 or bfloat16."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight, eps
        self.bits = bits(weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every row of ``x`` (..., n)."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        y = torch.empty_like(rows)
        rms_norm.rms_norm(bits(y), bits(rows), self.bits, self.eps)
        return y.view(x.shape)


def fuse_norms(model: Any) -> int:
    """Replace every norm of ``model`` that computes this formula with these roundings; return their number."""
    found = [(name, eps) for name, module in model.named_modules() if (eps := _plain_eps(module)) is not None]
    for name, eps in found:
        replace_module(model, name, FusedNorm(model.get_submodule(name).weight, eps))
    return len(found)


@torch.no_grad()
def _plain_eps(module: nn.Module) -> float | None:
    """Return the eps of a module that behaves as a plain RMS norm on a probe; None for every other module."""
    parameters = dict(module.named_parameters())
    eps = next((vars(module)[key] for key in ("variance_epsilon", "eps") if key in vars(module)), None)
    if not type(module).__name__.endswith("RMSNorm") or set(parameters) != {"weight"} or eps is None:
        return None
    weight = parameters["weight"]
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    size = weight.numel()
    probe = torch.linspace(-3.0, 2.0, 2 * size).view(2, size)
    expected = copy.deepcopy(module).float()(probe)
    scale = torch.rsqrt(probe.square().mean(-1, keepdim=True) + eps)
    plain = torch.allclose(weight.float() * (probe * scale), expected, rtol=1e-5, atol=1e-6)
    return float(eps) if plain and _rounds_alike(module, float(eps), probe.to(weight.dtype)) else None


def _rounds_alike(module: Any, eps: float, probe: Tensor) -> bool:
    """Return whether the kernel rounds as the module does: summation order flips few bits, another formula many."""
    if probe.dtype == torch.float32:
        return True
    return alike(FusedNorm(module.weight, eps)(probe), module(probe))
