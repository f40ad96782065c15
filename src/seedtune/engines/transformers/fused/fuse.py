"""Replace layers by fused kernels, if a probe shows that this changes nothing."""

from __future__ import annotations

from typing import Any

import torch

from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.engines.transformers.fused.decoder_layer import fuse_layers
from seedtune.engines.transformers.fused.gated_mlp import fuse_gates
from seedtune.engines.transformers.fused.norms import fuse_norms
from seedtune.engines.transformers.fused.rotary_attention import fuse_attention


def fuse(model: Any, attention: SlotAttention, *, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
    """Fuse all suitable layers of a model whose weights are in place; return their number by kind."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return {}
    return {
        "norms": fuse_norms(model),
        "gates": fuse_gates(model, dtype),
        "attention": fuse_attention(model, attention, dtype),
        "layers": fuse_layers(model, attention, dtype),  # built from the others
    }
