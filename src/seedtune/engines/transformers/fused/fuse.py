"""Replace layers by fused kernels, if a probe shows that this changes nothing."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.engines.transformers.device import has_kernels, has_triton
from seedtune.engines.transformers.fused.decoder_layer import fused_layer
from seedtune.engines.transformers.fused.device_layer import device_layer
from seedtune.engines.transformers.fused.gated_mlp import fused_gate
from seedtune.engines.transformers.fused.norms import fused_norm
from seedtune.engines.transformers.fused.rotary_attention import fused_attention
from seedtune.engines.transformers.tracing import replace_module

log = logging.getLogger("seedtune")


def fuse(model: Any, attention: SlotAttention, *, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
    """Fuse all suitable layers of a model whose weights are in place; return their number by kind."""
    if has_triton(device):
        return _fuse_for_device(model, attention, dtype)
    if not has_kernels(device, dtype):
        return {}
    return {
        "norms": replace_all(model, fused_norm),
        "gates": replace_all(model, fused_gate, dtype),
        "attention": replace_all(model, fused_attention, attention, dtype),
        "layers": replace_all(model, fused_layer, attention, dtype),  # built from the others
    }


def _fuse_for_device(model: Any, attention: SlotAttention, dtype: torch.dtype) -> dict[str, int]:
    """Fuse all suitable layers by Triton kernels; where those do not compile, say so and fuse none."""
    try:
        return {"layers": replace_all(model, device_layer, attention, dtype)}
    except importlib.import_module("triton.errors").TritonError as error:
        log.warning("decoder layers are not fused, which is slower: Triton's kernels do not compile here (%s)", error)
        return {"layers": 0}


def replace_all(model: Any, fused: Callable[..., nn.Module | None], *arguments: Any) -> int:
    """Replace every module for which ``fused`` returns another; return their number."""
    made = [(name, fused(module, *arguments)) for name, module in list(model.named_modules())]
    found = [(name, module) for name, module in made if module is not None]
    for name, module in found:
        replace_module(model, name, module)
    return len(found)
