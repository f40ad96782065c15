"""Bit casts between float32 and the 16 high bits that are bfloat16, for the compiled kernels.

Arrays of bfloat16 reach the kernels as their uint16 view, because numpy has no such type.
``load`` and ``store`` compile to a shift or to nothing, so one kernel source serves both precisions.
"""

from __future__ import annotations

from typing import Any

import numba as nb
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from seedtune.numerics.machine.vectors import BITS16


@intrinsic
def float_of(_context: Any, word: Any) -> Any:
    """Return the float32 whose bits are ``word`` (uint32)."""

    def generate(_ctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def word_of(_context: Any, value: Any) -> Any:
    """Return the bits of ``value`` (float32) as uint32."""

    def generate(_ctx: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


def load(element: Any) -> Any:
    """Return a float32 from a float32 or from the uint16 bits of a bfloat16."""
    raise NotImplementedError("compiled code only")


@overload(load, inline="always")
def _load(element: Any) -> Any:
    if element == BITS16:

        def widened(element: Any) -> Any:
            return float_of(nb.uint32(element) << nb.uint32(16))

        return widened

    def same(element: Any) -> Any:
        return element

    return same


def store(array: Any, value: Any) -> Any:
    """Return ``value`` (float32) as an element of ``array``: itself, or rounded to bfloat16 (to nearest even)."""
    raise NotImplementedError("compiled code only")


@overload(store, inline="always")
def _store(array: Any, value: Any) -> Any:
    if array.dtype == BITS16:

        def rounded(array: Any, value: Any) -> Any:
            word = word_of(value)
            bias = nb.uint32(0x7FFF) + ((word >> nb.uint32(16)) & nb.uint32(1))
            return nb.uint16((word + bias) >> nb.uint32(16))

        return rounded

    def same(array: Any, value: Any) -> Any:
        return value

    return same
