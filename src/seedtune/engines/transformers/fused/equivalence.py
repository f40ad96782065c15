"""Show that a module of a model computes a known formula, by its outputs and not by its name."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROUNDING_FLIPS = 0.05
"""Share of a bfloat16 probe's elements that may differ by their last bit."""


NOT_PLAIN = (RuntimeError, ValueError, TypeError, IndexError, AttributeError)
"""Exceptions that a layer may raise on a probe it was not made for: it then keeps its own code."""


def has_only(module: nn.Module, *children: str) -> bool:
    """Return whether a module has exactly these children, and no parameters of its own."""
    return {name for name, _ in module.named_children()} == {*children} and not module._parameters


def probe_values(shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Return fixed values (1, tokens, width) without pattern, of order 1 for the first token, then 4, then 16.

    A layer that clips does so at one of these sizes.
    """
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return (values * 4.0 ** torch.arange(shape[1])[:, None]).to(dtype)


def probe_angles(tokens: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin (1, tokens, dim) of different angles."""
    angles = torch.arange(tokens * dim // 2, dtype=torch.float32).view(1, tokens, -1).repeat(1, 1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def alike(found: Tensor, expected: Tensor) -> bool:
    """Return whether two results of one formula differ by no more than the order of a sum: a few last bits."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if found.dtype == torch.float32:
        return torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    flips = bool((found != expected).float().mean() < ROUNDING_FLIPS)
    return flips and torch.allclose(found.float(), expected.float(), rtol=2**-6, atol=1e-6)
