"""e^x for x ≤ 0 in float32, in a form that the vectoriser can handle."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from seedtune.engines.transformers.cpu_kernels.bfloat16 import float_of

_LOG2E = np.float32(1.4426950408889634)


@nb.njit(inline="always")
def exp(x: Any) -> Any:  # pragma: no cover
    """Return e^x for x ≤ 0 in float32: relative error below 2e-6 from -20 on, and 2⁻¹²⁶ where e^x is smaller.

    2^(whole + f) with |f| ≤ ½; the polynomial's own error is (½·ln 2)⁷/7! = 1.2e-7.
    """
    t = max(x * _LOG2E, np.float32(-126.0))
    whole = np.floor(t + np.float32(0.5))
    f = t - whole
    poly = np.float32(1.5403530e-4)
    poly = poly * f + np.float32(1.3333558e-3)
    poly = poly * f + np.float32(9.6181291e-3)
    poly = poly * f + np.float32(5.5504109e-2)
    poly = poly * f + np.float32(2.4022651e-1)
    poly = poly * f + np.float32(6.9314718e-1)
    poly = poly * f + np.float32(1.0)
    return poly * float_of(nb.uint32(nb.int32(whole) + nb.int32(127)) << nb.uint32(23))
