"""The device of the transformers engine: settings as torch's types, uploads, waiting for its work, lack of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from seedtune.config.sections import TransformersSettings
from seedtune.errors import ConfigError, EngineError, first_line

KERNELS = True
"""Whether compiled kernels compute where they can; without them a CPU takes the path of every other device."""


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether compiled kernels compute on a device and in a type."""
    return KERNELS and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


INTERPRETED = False
"""Whether the Triton kernels of GPUs compute on a CPU without compiled kernels, in Triton's interpreter: for tests."""


def has_triton(device: torch.device) -> bool:
    """Return whether Triton kernels compute on a device."""
    return (device.type == "cuda" and find_spec("triton") is not None) or (INTERPRETED and not KERNELS)


def uploaded(device: torch.device, *arrays: np.ndarray) -> list[Tensor]:
    """Return int32 and float32 arrays of one length on the device, by one copy that the host does not wait for."""
    block = torch.from_numpy(np.stack([array.view(np.int32) for array in arrays]))
    if device.type == "cuda":
        block = block.pin_memory()
    moved = block.to(device, non_blocking=True)
    floats = [array.dtype == np.float32 for array in arrays]
    return [row.view(torch.float32) if is_float else row for row, is_float in zip(moved, floats, strict=True)]


def home_of(device: torch.device) -> torch.device:
    """Return where the exact weights of a model on ``device`` are, and its noise is drawn: where there are kernels."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def torch_device(settings: TransformersSettings) -> torch.device:
    """Return the device; ConfigError if it is not available."""
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"transformers.device={name!r} is not a device. Use cpu, cuda, cuda:N or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"transformers.device={name!r}, but torch sees no CUDA device. Use device=cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"transformers.device={name!r}, but torch sees no Apple GPU. Use device=cpu.")
    return device


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all work it was given; a CPU has done it when a call returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def free_memory(device: torch.device) -> int:
    """Return the bytes that a GPU has free for this process."""
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + held


@contextmanager
def memory_limits_named(device: torch.device, *, rows: int, positions: int) -> Iterator[None]:
    """Raise EngineError, which names the settings to lower, where the device runs out of memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EngineError(
            f"{device} ran out of memory ({first_line(error)}). Lower transformers.max_batch_tokens="
            f"{positions} (positions of the key-value cache; a prefill pass reads a 64th of them) or "
            f"transformers.max_rows={rows} (completions in flight)."
        ) from error


def dtype_named(name: str, checkpoint: torch.dtype, device: str) -> torch.dtype:
    """Return the precision that a setting names; ``auto``: the checkpoint's own, if the device computes in it."""
    if name == "auto":
        return torch.float32 if device == "cpu" and checkpoint == torch.float16 else checkpoint
    chosen: torch.dtype = getattr(torch, name)
    return chosen


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type as settings and ledgers have it."""
    return str(dtype).removeprefix("torch.")
