"""The memory of weights that oneDNN has packed, where a probe shows that it lies in panels."""

from __future__ import annotations

import ctypes
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seedtune.kernels import panels as kernel

Panels = NDArray[np.uint16]


def panels_of(packed: Tensor) -> Panels | None:
    """The panels of a packed weight (outputs, inputs), as long as it lives; None if it lies otherwise."""
    return _memory(packed) if kernel.available() and _says_where() and _in_panels(*packed.shape) else None


@cache
def _says_where() -> bool:
    """Whether this torch tells where a packed weight lies."""
    return {"mkldnn::data_ptr", "mkldnn::_nbytes"} <= set(torch._C._dispatch_get_all_op_names())


def _memory(packed: Tensor) -> Panels:
    place, size = int(torch.ops.mkldnn.data_ptr(packed)), int(torch.ops.mkldnn._nbytes(packed))
    return np.ctypeslib.as_array((ctypes.c_uint16 * (size // 2)).from_address(place))


@cache
def _in_panels(outputs: int, inputs: int) -> bool:
    """Whether oneDNN lays out weights of this shape as `seedtune.kernels.panels` reads them."""
    if outputs % kernel.WIDTH or inputs % 2:
        return False
    probe = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)).bfloat16()
    packed = torch.ops.mkldnn._reorder_linear_weight(probe, None)
    return np.array_equal(_memory(packed), in_panels(probe.view(torch.uint16).numpy()))


def in_panels(weight: Panels) -> Panels:
    """A weight (outputs, inputs) laid out in panels, (outputs·inputs,)."""
    outputs, inputs = weight.shape
    blocks = weight.reshape(outputs // kernel.WIDTH, kernel.WIDTH, inputs // 2, 2)
    return np.ascontiguousarray(blocks.transpose(0, 2, 1, 3)).reshape(-1)
