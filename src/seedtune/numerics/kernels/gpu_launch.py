"""Launch Triton kernels: convert programs, words and constants to the form that the kernels take.

torch and triton are imported on first use.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seedtune.errors import MissingExtraError
from seedtune.numerics import noise
from seedtune.numerics.noise import LANES, Address

if TYPE_CHECKING:
    from torch import Tensor

INSTALL = "pip install 'triton>=3.6'"

FLOATS = ("float32", "float16", "bfloat16")
BLOCKS = 256  # Philox blocks of a program: 2048 elements, 16 for each of 128 threads


def launch(name: str, programs: int, out: Tensor, *arguments: Any, **meta: Any) -> None:
    """Run a kernel on the device of ``out``; products and sums are never fused, see `gpu_triton`."""
    if programs > 0:
        with import_torch().cuda.device_of(out):
            getattr(bodies(), name)[(programs,)](out, *arguments, enable_fp_fusion=False, **meta)


def pieces(count: int, start: int) -> int:
    """Return the programs for ``count`` elements that begin at element ``start``, maybe in the middle of a block."""
    return -(-(count + start % LANES) // (BLOCKS * LANES)) if count else 0


def run_of_blocks(start: int) -> dict[str, Any]:
    """Return the constants of a run of blocks that begins at element ``start``."""
    return {"SKIP": start % LANES, "BLOCKS": BLOCKS}


def where(address: Address, start: int) -> tuple[int, ...]:
    """Return (first block, k0, k1, stream tag, pair, generation): signed 32-bit integers, one type for all words."""
    k0, k1 = address.key
    words = (k0, k1, address.stream << 24, address.pair, address.generation)
    return start // LANES, *(signed(word, 32) for word in words)


def signed(number: int, bits: int) -> int:
    """Return the signed integer of that many bits that equals ``number`` modulo 2**bits."""
    return (number + (1 << bits - 1)) % (1 << bits) - (1 << bits - 1)


def upload(array: NDArray[np.int32], like: Tensor) -> Tensor:
    """Copy the array to the device of ``like``."""
    moved: Tensor = import_torch().from_numpy(array).to(like.device)
    return moved


def raw(tensor: Tensor) -> Tensor:
    """Return the tensor, 16-bit floats as int16: kernels do their own conversions."""
    return tensor if tensor.element_size() == 4 else tensor.view(import_torch().int16)


def kind(tensor: Tensor) -> str:
    """Return the element type's name."""
    return str(tensor.dtype).removeprefix("torch.")


@lru_cache(maxsize=8)
def table(device: Any) -> Tensor:
    """Return the lower half of the quantiles on a device, float32 [32768]: the upper half is its mirror image."""
    return _lower_half(noise.quantiles(), device)


@lru_cache(maxsize=8)
def sign_table(device: Any) -> Tensor:
    """Return the lower half of the signs of the quantiles on a device, float32 [32768], mirrored as `table` is."""
    return _lower_half(noise.sign_table(), device)


def _lower_half(whole: NDArray[np.float32], device: Any) -> Tensor:
    half: Tensor = import_torch().from_numpy(whole[: whole.size // 2].copy()).to(device)
    return half


def import_torch() -> Any:
    """Return the module torch, imported on first use."""
    return importlib.import_module("torch")


def bodies() -> Any:
    """Return the module of the Triton kernels, imported on first use; MissingExtraError without Triton."""
    try:
        return importlib.import_module("seedtune.numerics.kernels.gpu_triton")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingExtraError("computing on a GPU", INSTALL) from error


def require_tensor(
    name: str, tensor: Tensor, ndim: int, kinds: tuple[str, ...] = FLOATS, *, like: Tensor | None = None
) -> None:
    """Raise ValueError unless ``tensor`` is contiguous, of one of these types, and shaped and placed as ``like``."""
    if kind(tensor) not in kinds or tensor.ndim != ndim or not tensor.is_contiguous():
        layout = "contiguous" if tensor.is_contiguous() else "strided"
        raise ValueError(
            f"{name} is a {layout} {tensor.ndim}-d tensor of {tensor.dtype}; "
            f"it must be a contiguous {ndim}-d tensor of {' or '.join(kinds)}"
        )
    if like is not None and (tensor.shape != like.shape or tensor.device != like.device):
        raise ValueError(
            f"{name} is {tuple(tensor.shape)} on {tensor.device}; it must be {tuple(like.shape)} on {like.device}"
        )
    bodies()
    if not tensor.is_cuda and not importlib.import_module("triton").knobs.runtime.interpret:
        raise ValueError(
            f"{name} lies on {tensor.device}: these kernels need a CUDA device; use seedtune.numerics.kernels.cpu for "
            "arrays on the CPU (or set TRITON_INTERPRET=1 before the start to test without a GPU)"
        )
