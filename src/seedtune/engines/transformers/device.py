"""Convert the transformers engine's settings to torch's types."""

from __future__ import annotations

import torch

from seedtune.config.sections import TransformersSettings
from seedtune.errors import ConfigError


def torch_device(settings: TransformersSettings) -> torch.device:
    """Return the device; ConfigError if it is not available."""
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


def dtype_named(name: str, checkpoint: torch.dtype, device: str) -> torch.dtype:
    """Return the precision that a setting names; ``auto``: the checkpoint's own, if the device computes in it."""
    if name == "auto":
        return torch.float32 if device == "cpu" and checkpoint == torch.float16 else checkpoint
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type as settings and ledgers have it."""
    return str(dtype).removeprefix("torch.")
