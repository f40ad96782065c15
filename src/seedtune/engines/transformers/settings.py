"""The transformers engine's settings as torch understands them."""

from __future__ import annotations

import torch

from seedtune.errors import ConfigError
from seedtune.settings import TransformersSettings


def torch_device(settings: TransformersSettings) -> torch.device:
    """The device; ConfigError if it is not there."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"transformers.device={name!r} is not a device. Use cpu, cuda or cuda:N.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"transformers.device={name!r}, but torch sees no CUDA device. Use device=cpu.")
    return device


def torch_dtype(settings: TransformersSettings, checkpoint: torch.dtype, device: torch.device) -> torch.dtype:
    """The precision of the forward pass for a checkpoint of that precision."""
    if settings.dtype == "auto":
        return torch.float32 if device.type == "cpu" and checkpoint == torch.float16 else checkpoint
    chosen: torch.dtype = getattr(torch, settings.dtype)
    return chosen


__all__ = ["TransformersSettings", "torch_device", "torch_dtype"]
