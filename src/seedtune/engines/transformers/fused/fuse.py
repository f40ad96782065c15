"""Replace layers by fused kernels, if a probe shows that this changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.engines.transformers.device import has_kernels
from seedtune.engines.transformers.fused.decoder_layer import fused_layer
from seedtune.engines.transformers.fused.gated_mlp import fused_gate
from seedtune.engines.transformers.fused.norms import fused_norm
from seedtune.engines.transformers.fused.rotary_attention import fused_attention
from seedtune.engines.transformers.tracing import replace_module


def fuse(model: Any, attention: SlotAttention, *, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
    """Fuse all suitable layers of a model whose weights are in place; return their number by kind."""
    if not has_kernels(device, dtype):
        return {}
    return {
        "norms": replace_all(model, fused_norm),
        "gates": replace_all(model, fused_gate, dtype),
        "attention": replace_all(model, fused_attention, attention, dtype),
        "layers": replace_all(model, fused_layer, attention, dtype),  # built from the others
    }


def replace_all(model: Any, fused: Callable[..., nn.Module | None], *arguments: Any) -> int:
    """Replace every module for which ``fused`` returns another; return their number."""
    made = [(name, fused(module, *arguments)) for name, module in list(model.named_modules())]
    found = [(name, module) for name, module in made if module is not None]
    for name, module in found:
        replace_module(model, name, module)
    return len(found)
