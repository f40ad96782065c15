"""The element types of weights, and the exact numpy reference of every rounding between them.

Weights are float32, float16 or bfloat16. numpy has no bfloat16: its arrays hold the bits as uint16. A float32
becomes a 16-bit element in one of two ways, both by integer arithmetic on the bits, so that every device agrees:

* `nearest`, to nearest even as in IEEE 754, writes perturbed weights, which are read once;
* `stochastic`, up or down at random with the exact value as the mean, writes the current weights, where updates far
  below half a step of the type must add up over many generations instead of being lost.

The compiled kernels are tested against this module bit for bit. NaN is quieted and keeps its sign and the high
bits of its payload, as processors do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

ARRAYS: dict[str, type[np.generic]] = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}
"""The type of the numpy array that holds elements of each type."""

SIGN, MAGNITUDE = 0x80000000, 0x7FFFFFFF
INFINITY, HALF_INFINITY = 0x7F800000, 0x7C00
HALF_SMALLEST_NORMAL = 0x38800000
"""2**-14, from which float16 has 10 bits of fraction; in float32 bits."""

HALF_FIELD = 13
"""Fraction bits that float32 has and float16 lacks."""

HALF_REBIAS = (127 - 15) << 10
"""Difference of the exponent bias between float32 and float16."""

_U = np.uint32


def dtype_of(array: NDArray[Any]) -> str:
    """Return the element type of an array of weights; ValueError unless it is float32, float16 or uint16."""
    for name, kind in ARRAYS.items():
        if array.dtype == kind:
            return name
    raise ValueError(f"weights are float32, float16 or uint16 (the bits of bfloat16), not {array.dtype}")


def widen(array: NDArray[Any]) -> Float32:
    """Return weights of any element type as float32, exactly; float32 itself without a copy."""
    if dtype_of(array) == "bfloat16":
        return (array.astype(np.uint32) << _U(16)).view(np.float32)
    return array.astype(np.float32, copy=False)


def nearest(values: Float32, dtype: str) -> NDArray[Any]:
    """Round ``values`` (float32 [n]) to ``dtype``, to nearest even; overflow gives infinity, as in IEEE 754."""
    if dtype == "float32":
        return values
    word = np.ascontiguousarray(values, np.float32).view(np.uint32)
    size = word & _U(MAGNITUDE)
    if dtype == "bfloat16":
        rounded = (size + _U(0x7FFF) + ((size >> _U(16)) & _U(1))) >> _U(16)
        return _assemble(word, np.where(size > _U(INFINITY), _quiet(size, 16), rounded), dtype)
    normal = ((size + _U(0xFFF) + ((size >> _U(HALF_FIELD)) & _U(1))) >> _U(HALF_FIELD)) - _U(HALF_REBIAS)
    # The last bit of a sum in [0.5, 1) is 2**-24, the step of the smallest float16 numbers.
    small = (np.abs(np.where(size < _U(HALF_SMALLEST_NORMAL), values, _ZERO)) + _HALF).view(np.uint32)
    rounded = np.where(size < _U(HALF_SMALLEST_NORMAL), small - _HALF.view(np.uint32), normal)
    rounded = np.minimum(rounded, _U(HALF_INFINITY))
    return _assemble(word, np.where(size > _U(INFINITY), _quiet(size, HALF_FIELD), rounded), dtype)


def stochastic(values: Float32, codes: NDArray[np.uint16], dtype: str) -> NDArray[Any]:
    """Round ``values`` (float32 [n]) to ``dtype``, away from zero with the probability of the dropped fraction.

    ``codes`` (uint16 [n]) are uniform on 0..65535. Over all of them the mean is the exact value, for
    bfloat16 and for float16 from 2**-14 on (whose 13 dropped bits are rounded by the code's high 13); smaller
    float16 numbers drop what is below 2**-40. A representable value never moves, and a finite one never becomes
    infinite: it saturates at the largest finite number. float32 has nothing to drop and is returned unchanged.
    """
    if dtype == "float32":
        return values
    word = np.ascontiguousarray(values, np.float32).view(np.uint32)
    size, code = word & _U(MAGNITUDE), codes.astype(np.uint32)
    if dtype == "bfloat16":
        rounded, largest, field = (size + code) >> _U(16), _U(INFINITY >> 16) - _U(1), 16
    else:
        rounded, largest, field = _half_by_chance(size, code), _U(HALF_INFINITY - 1), HALF_FIELD
    rounded = np.minimum(rounded, largest)
    rounded = np.where(size == _U(INFINITY), largest + _U(1), rounded)
    return _assemble(word, np.where(size > _U(INFINITY), _quiet(size, field), rounded), dtype)


_ZERO, _HALF = np.float32(0.0), np.float32(0.5)


def _half_by_chance(size: NDArray[np.uint32], code: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return bits of float16 from the bits of non-negative float32 numbers; undefined beyond float16's range."""
    normal = ((size + (code >> _U(3))) >> _U(HALF_FIELD)) - _U(HALF_REBIAS)
    small = size < _U(HALF_SMALLEST_NORMAL)
    # 2**-24 is the step of the smallest numbers, and 16 more bits of fraction are rounded by the code.
    fixed = (np.where(small, size, _U(0)).view(np.float32) * np.float32(2.0**40)).astype(np.uint32)
    return np.where(small, (fixed + code) >> _U(16), normal)


def _quiet(size: NDArray[np.uint32], field: int) -> NDArray[np.uint32]:
    """Return a NaN's high bits in a type with ``field`` fewer bits, marked as quiet."""
    if field == HALF_FIELD:
        return _U(HALF_INFINITY | 0x200) | ((size >> _U(field)) & _U(0x3FF))
    return (size >> _U(field)) | _U(0x40)


def _assemble(word: NDArray[np.uint32], size: NDArray[np.uint32], dtype: str) -> NDArray[Any]:
    """Combine the signs of ``word`` and the magnitude bits ``size`` into 16-bit elements."""
    return (((word & _U(SIGN)) >> _U(16)) | size).astype(np.uint16).view(ARRAYS[dtype])
