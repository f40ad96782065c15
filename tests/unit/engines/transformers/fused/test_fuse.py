"""Fused layers are the model's own, and stand in only for layers that compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba as nb
import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from seedtune.engines.transformers.cpu_kernels import rotary, silu_gate
from seedtune.engines.transformers.cpu_kernels.exponential import exp
from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.engines.transformers.decoding.slot_cache import SlotCache
from seedtune.engines.transformers.fused.fuse import replace_all
from seedtune.engines.transformers.fused.gated_mlp import FusedGate, fused_gate
from seedtune.engines.transformers.fused.rotary_attention import FusedAttention, fused_attention
from seedtune.engines.transformers.members.population_linear import bits

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2, head_dim=16, mlp_bias=True
)


def normal(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@DTYPES
@pytest.mark.parametrize("rows", [1, 5, 700])
def test_rotation_has_the_bits_of_transformers(rows: int, dtype: torch.dtype) -> None:
    x = normal(rows, 5, 16, seed=1, dtype=dtype)
    cos, sin = normal(rows, 16, seed=2, dtype=dtype), normal(rows, 16, seed=3, dtype=dtype)
    turned = torch.cat((-x[..., 8:], x[..., :8]), -1)
    expected = x * cos[:, None] + turned * sin[:, None]
    expected[:, 3:] = x[:, 3:]
    rotary.rotate(bits(x), bits(cos), bits(sin), 3)
    assert torch.equal(x, expected)


@DTYPES
@pytest.mark.parametrize("rows", [1, 3, 300])
def test_the_gate_is_silu_times_up(rows: int, dtype: torch.dtype) -> None:
    x = 4 * normal(rows, 160, seed=1, dtype=dtype)
    x[0, :4] = torch.tensor([-200.0, 200.0, 0.0, -0.0])
    out = torch.empty(rows, 80, dtype=dtype)
    silu_gate.silu_gate(bits(out), bits(x))
    expected = nn.functional.silu(x[:, :80]) * x[:, 80:]
    flips = (out != expected)[:, 1:].float().mean()  # silu(-200) is 2e-36 here and 0 there
    torch.testing.assert_close(out.float(), expected.float(), rtol=2e-6 if dtype == torch.float32 else 2**-6, atol=1e-6)
    assert dtype == torch.float32 or flips < 0.01


@pytest.fixture
def attention() -> Iterator[SlotAttention]:
    slots = SlotAttention(SlotCache(2, 8))
    CONFIG._attn_implementation = slots.name
    yield slots
    CONFIG._attn_implementation = "eager"


def holder(module: nn.Module, dtype: torch.dtype) -> Any:
    model = nn.Module()
    model.layer = module
    return model.to(dtype).eval()


@DTYPES
@torch.no_grad()
def test_plain_feed_forward_layers_are_fused(dtype: torch.dtype) -> None:
    model = holder(LlamaMLP(CONFIG), dtype)
    names = list(model.state_dict())
    x = normal(1, 4, 64, seed=1, dtype=dtype)
    expected = model.layer(x)
    assert replace_all(model, fused_gate, dtype) == 1
    assert isinstance(model.layer, FusedGate)
    assert sorted(model.state_dict()) == sorted(names)
    torch.testing.assert_close(model.layer(x).float(), expected.float(), rtol=0.02, atol=1e-2)
    assert replace_all(model, fused_gate, dtype) == 0


class ClampedMLP(LlamaMLP):
    """The same layers and another formula."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=0.1) * self.up_proj(x))


class ScaledMLP(LlamaMLP):
    """What differs lies behind the last product."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 0.5


@pytest.mark.parametrize("kind", [ClampedMLP, ScaledMLP])
def test_feed_forward_layers_of_another_formula_are_left_alone(kind: type[LlamaMLP]) -> None:
    model = holder(kind(CONFIG), torch.float32)
    assert replace_all(model, fused_gate, torch.float32) == 0


def test_another_activation_is_left_alone() -> None:
    module = LlamaMLP(CONFIG)
    module.act_fn = nn.GELU()
    assert replace_all(holder(module, torch.float32), fused_gate, torch.float32) == 0


@DTYPES
def test_plain_attention_layers_are_fused(attention: SlotAttention, dtype: torch.dtype) -> None:
    model = holder(LlamaAttention(CONFIG, 0), dtype)
    names = sorted(model.state_dict())
    assert replace_all(model, fused_attention, attention, dtype) == 1
    assert isinstance(model.layer, FusedAttention)
    assert sorted(model.state_dict()) == names


class ClippedAttention(LlamaAttention):
    """Clips its queries, as some models do."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        hidden_states = hidden_states.clamp(-0.5, 0.5)
        return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)


class ScaledAttention(LlamaAttention):
    """What differs lies behind attention."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: Any,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        out, weights = super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        return out * 2.0, weights


@pytest.mark.parametrize("kind", [ClippedAttention, ScaledAttention])
def test_attention_layers_of_another_formula_are_left_alone(
    attention: SlotAttention, kind: type[LlamaAttention]
) -> None:
    model = holder(kind(CONFIG, 0), torch.float32)
    assert replace_all(model, fused_attention, attention, torch.float32) == 0
    assert isinstance(model.layer, kind)


@nb.njit
def _exp_all(out: np.ndarray, x: np.ndarray) -> None:
    for i in range(x.size):
        out[i] = exp(x[i])


def test_the_vector_exponential_is_exact_to_two_millionths() -> None:
    x = -np.linspace(0.0, 20.0, 200_001, dtype=np.float32)
    out = np.empty_like(x)
    _exp_all(out, x)
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=2e-6)


class LargeClipMLP(LlamaMLP):
    """Clips where only large inputs reach."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj((self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(max=20.0))


def test_a_clip_that_only_large_values_reach_is_seen() -> None:
    model = holder(LargeClipMLP(CONFIG), torch.float32)
    assert replace_all(model, fused_gate, torch.float32) == 0


class PartialMLP(LlamaMLP):
    """Cannot run on a probe."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(x[:, 100:].view(7, 7))


def test_a_layer_that_fails_on_the_probe_keeps_its_own_code() -> None:
    model = holder(PartialMLP(CONFIG), torch.float32)
    assert replace_all(model, fused_gate, torch.float32) == 0


@torch.no_grad()
def test_a_fused_layer_leaves_partial_rotation_to_the_model(attention: SlotAttention) -> None:
    model = holder(LlamaAttention(CONFIG, 0), torch.float32)
    plain = model.layer
    assert replace_all(model, fused_attention, attention, torch.float32) == 1
    seen: list[Any] = []
    plain.forward = lambda *inputs, **named: seen.append(named) or (inputs[0], None)
    half = torch.ones(1, 3, 8)
    model.layer(torch.ones(1, 3, 64), (half, half), past_key_values=None)
    assert len(seen) == 1
