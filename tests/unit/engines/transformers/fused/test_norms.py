"""The fused RMS norm is the model's own norm, and only stands in for that."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from seedtune.engines.transformers.fused.fuse import replace_all
from seedtune.engines.transformers.fused.norms import FusedNorm, fused_norm


def llama_norm(size: int, dtype: torch.dtype) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(size, eps=1e-5)
    norm.weight.data = torch.linspace(0.5, 1.5, size)
    return norm.to(dtype)


@pytest.mark.parametrize("rows", [1, 7, 200])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@torch.no_grad()
def test_the_fused_norm_equals_the_models_norm(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    norm = llama_norm(192, dtype)
    x = torch.linspace(-4, 3, rows * 192).sin().view(1, rows, 192).to(dtype)
    fused = FusedNorm(norm.weight, 1e-5)(x)
    assert fused.shape == x.shape
    torch.testing.assert_close(fused.float(), norm(x).float(), rtol=tolerance, atol=tolerance)


def test_norms_of_another_formula_are_left_alone() -> None:
    model = nn.Module()
    model.plain, model.shifted, model.layer = llama_norm(16, torch.float32), Gemma3RMSNorm(16), nn.LayerNorm(16)
    model.shifted.weight.data.fill_(0.3)
    assert replace_all(model, fused_norm) == 1
    assert isinstance(model.plain, FusedNorm)
    assert isinstance(model.shifted, Gemma3RMSNorm)
    assert isinstance(model.layer, nn.LayerNorm)


class RoundsOnceRMSNorm(LlamaRMSNorm):
    """The same formula with the product taken before the one rounding."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states.float()
        return (self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5))).to(hidden_states.dtype)


def test_a_norm_that_rounds_elsewhere_is_left_alone_in_bfloat16() -> None:
    model = nn.Module()
    model.norm = RoundsOnceRMSNorm(192, eps=1e-5)
    model.norm.weight.data = torch.linspace(0.5, 1.5, 192)
    assert replace_all(model.bfloat16(), fused_norm) == 0


def test_fusing_keeps_the_parameter_names() -> None:
    model = nn.Module()
    model.norm = llama_norm(16, torch.bfloat16)
    before = list(model.state_dict())
    replace_all(model, fused_norm)
    assert list(model.state_dict()) == before
