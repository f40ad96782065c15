"""The Triton bodies of `seedtune.numerics.rounding`: element types in memory, and the two roundings between them."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl

from seedtune.numerics import rounding

SIGN, MAGNITUDE = tl.constexpr(rounding.SIGN), tl.constexpr(rounding.MAGNITUDE)
INFINITY, HALF_INFINITY = tl.constexpr(rounding.INFINITY), tl.constexpr(rounding.HALF_INFINITY)
HALF_SMALLEST_NORMAL = tl.constexpr(rounding.HALF_SMALLEST_NORMAL)
HALF_REBIAS = tl.constexpr(rounding.HALF_REBIAS)
ONE_HALF = tl.constexpr(0x3F000000)  # the bits of 0.5


@triton.jit
def widen(element, KIND: tl.constexpr):
    """Convert a stored element, float32 or int16 with the bits of a 16-bit float, to float32."""
    value = element
    if KIND == "bfloat16":
        value = (element.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    if KIND == "float16":
        value = element.to(tl.float16, bitcast=True).to(tl.float32)
    return value


@triton.jit
def assemble(word, size, KIND: tl.constexpr):
    """Return int16 with the sign of ``word``, the magnitude bits ``size``, and NaN (quiet) where ``word`` is NaN."""
    magnitude = word & MAGNITUDE
    quiet = (magnitude >> 16) | 0x40 if KIND == "bfloat16" else ((magnitude >> 13) & 0x3FF) | 0x7E00
    bits = tl.where(magnitude > INFINITY, quiet, size)
    return (((word & SIGN) >> 16) | bits).to(tl.int16)


@triton.jit
def nearest(value, KIND: tl.constexpr):
    """Round as `seedtune.numerics.rounding.nearest`: float32 unchanged, or int16 with the bits of a 16-bit float."""
    element, word = value, value.to(tl.uint32, bitcast=True)
    if KIND == "bfloat16":
        # With the sign in place: only NaN carries into it, and NaN is not rounded.
        rounded = tl.where(value != value, word | 0x400000, word + 0x7FFF + ((word >> 16) & 1))
        element = (rounded >> 16).to(tl.int16)
    if KIND == "float16":
        size = word & MAGNITUDE
        normal = ((size + 0xFFF + ((size >> 13) & 1)) >> 13) - HALF_REBIAS
        small = size < HALF_SMALLEST_NORMAL
        # The last bit of a sum in [0.5, 1) is 2**-24, the step of the smallest float16 numbers.
        fixed = (tl.abs(tl.where(small, value, 0.0)) + 0.5).to(tl.uint32, bitcast=True) - ONE_HALF
        element = assemble(word, tl.minimum(tl.where(small, fixed, normal), HALF_INFINITY), KIND)
    return element


@triton.jit
def stochastic(value, code, KIND: tl.constexpr):
    """Round as `seedtune.numerics.rounding.stochastic`: int16 bits from float32 and codes in high halves (uint32)."""
    word, code = value.to(tl.uint32, bitcast=True), code >> 16
    size = word & MAGNITUDE
    if KIND == "bfloat16":
        rounded = tl.where(size == INFINITY, size >> 16, tl.minimum((size + code) >> 16, (INFINITY >> 16) - 1))
    else:
        normal = ((size + (code >> 3)) >> 13) - HALF_REBIAS
        small = size < HALF_SMALLEST_NORMAL
        scaled = tl.abs(tl.where(small, value, 0.0)) * 1099511627776.0  # 2**40, exact
        rounded = tl.where(small, (scaled.to(tl.uint32) + code) >> 16, normal)
        rounded = tl.where(size == INFINITY, HALF_INFINITY, tl.minimum(rounded, HALF_INFINITY - 1))
    return assemble(word, rounded, KIND)
