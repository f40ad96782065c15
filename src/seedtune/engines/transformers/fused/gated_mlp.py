"""Gated feed-forward layers with one kernel between their products, if a probe shows that they are plain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seedtune.engines.transformers.cpu_kernels import silu_gate
from seedtune.engines.transformers.fused.equivalence import NOT_PLAIN, alike, has_only, probe_values
from seedtune.engines.transformers.members.population_linear import bits, input_width, joined


class FusedGate(nn.Module):
    """Computes down(silu(gate(x))·up(x)), on the CPU in float32 or bfloat16."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = plain.gate_proj, plain.up_proj, plain.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """Map hidden states (1, tokens, hidden) to the layer's output."""
        y: Tensor = self.down_proj(self.hidden(x))
        return y

    def hidden(self, x: Tensor) -> Tensor:
        """Return the input of the last product."""
        y = joined(x, (self.gate_proj, self.up_proj))
        out = y.new_empty(*y.shape[:-1], y.shape[-1] // 2)
        silu_gate.silu_gate(bits(out.view(-1, out.shape[-1])), bits(y.view(-1, y.shape[-1])))
        return out


@torch.no_grad()
def fused_gate(module: Any, dtype: torch.dtype) -> FusedGate | None:
    """Return a feed-forward layer that computes this formula in its fused form; None for every other module."""
    if not has_only(module, "gate_proj", "up_proj", "down_proj", "act_fn"):
        return None
    width = input_width(module.gate_proj)
    if width is None:
        return None
    probe = probe_values((1, 3, width), dtype)
    seen: list[Tensor] = []
    handle = module.get_submodule("down_proj").register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        expected = module(probe)
    except NOT_PLAIN:
        return None
    finally:
        handle.remove()
    fused = FusedGate(module)
    same = len(seen) == 1 and alike(fused.hidden(probe), seen[0]) and torch.equal(fused.down_proj(seen[0]), expected)
    return fused if same else None
