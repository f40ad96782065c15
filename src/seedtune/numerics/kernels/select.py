"""Select the kernels for a device."""

from __future__ import annotations

from types import ModuleType

from seedtune.errors import ConfigError


def kernels_for(device: str) -> ModuleType:
    """Return `kernels.cpu` (numpy arrays) for "cpu", `kernels.gpu` (torch tensors) for "cuda" or "cuda:1".

    Both have the functions of `kernels.base`, and give the same bits. Raises ConfigError for other devices and
    MissingExtraError without triton.
    """
    kind = device.partition(":")[0]
    if kind == "cpu":
        from seedtune.numerics.kernels import cpu

        return cpu
    if kind == "cuda":
        from seedtune.numerics.kernels import gpu

        gpu.require_triton()
        return gpu
    raise ConfigError(f"device={device!r}: there are kernels for cpu and cuda. Use one of these.")
