"""The place of each row's largest number, as torch finds it, on the CPU."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.kernels.bits import load
from seedtune.kernels.caching import inner, njit
from seedtune.kernels.reductions import maximum_in_lanes

Array = NDArray[Any]


_BLOCK = 1024
"""Numbers looked through at once for the one that is wanted."""


@inner()
def _holds(part: Any, wanted: Any) -> Any:  # pragma: no cover
    """How many numbers of a part are ``wanted`` or NaN."""
    count = np.int32(0)
    for j in range(part.size):
        value = load(part[j])
        count += np.int32((value == wanted) | (value != value))
    return count


@njit(parallel=True, cache=True, nogil=True)
def _largest(out: Any, x: Any) -> None:  # pragma: no cover
    for i in nb.prange(x.shape[0]):
        row = x[i]
        top, place = maximum_in_lanes(row, row.ctypes.data, row.size), 0
        while place + _BLOCK < row.size and _holds(row[place : place + _BLOCK], top) == 0:
            place += _BLOCK
        while _holds(row[place : place + 1], top) == 0:
            place += 1
        out[i] = place


def largest(x: Array) -> list[int]:
    """The first place of each row's largest number; NaN is larger than all others, as in ``torch.max``.

    x (rows, n) in float32 or the bits of bfloat16, C contiguous, n ≥ 1.
    """
    out = np.empty(x.shape[0], np.int64)
    _largest(out, x)
    found: list[int] = out.tolist()
    return found
