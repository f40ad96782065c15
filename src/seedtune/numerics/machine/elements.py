"""Elements of weights in compiled code: float32, bfloat16 and float16, and the roundings between them.

The bits equal those of `seedtune.numerics.rounding`, by the same integer arithmetic. numba has neither 16-bit type, so
kernels see the bits: bfloat16 as uint16, float16 as int16 (to distinguish the two). Written as LLVM code for one
number or for a vector; there are no branches, so loops over single numbers vectorise too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from seedtune.numerics import rounding

SINGLE, BRAIN, HALF = types.float32, types.uint16, types.int16
"""float32, and the stand-ins for bfloat16 and float16."""


class Lanes:
    """LLVM types of ``width`` numbers side by side, or of one number for width 0."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.floats, self.words, self.halves = (
            ir.VectorType(t, width) if width else t for t in (ir.FloatType(), ir.IntType(32), ir.IntType(16))
        )

    def word(self, value: int) -> Any:
        """Return a 32-bit constant in every lane."""
        return ir.Constant(self.words, [value] * self.width if self.width else value)

    def float(self, value: float) -> Any:
        """Return a float32 constant in every lane."""
        return ir.Constant(self.floats, [value] * self.width if self.width else value)


def stored(element: Any, lanes: Lanes) -> Any:
    """Return the LLVM type of stored elements."""
    return lanes.floats if element == SINGLE else lanes.halves


def widened(builder: Any, raw: Any, element: Any, lanes: Lanes) -> Any:
    """Convert stored elements to float32, exactly."""
    if element == SINGLE:
        return raw
    word = builder.zext(raw, lanes.words)
    if element == BRAIN:
        return builder.bitcast(builder.shl(word, lanes.word(16)), lanes.floats)
    return _from_half(builder, word, lanes)


def nearest_even(builder: Any, value: Any, element: Any, lanes: Lanes) -> Any:
    """Round float32 to nearest even, to a stored element; see `rounding.nearest`."""
    if element == SINGLE:
        return value
    word, size = _split(builder, value, lanes)
    field = 16 if element == BRAIN else rounding.HALF_FIELD
    odd = builder.and_(builder.lshr(size, lanes.word(field)), lanes.word(1))
    up = builder.add(size, builder.add(odd, lanes.word((1 << (field - 1)) - 1)))
    rounded = builder.lshr(up, lanes.word(field))
    if element == HALF:
        rounded = builder.sub(rounded, lanes.word(rounding.HALF_REBIAS))
        sum_ = builder.fadd(builder.bitcast(size, lanes.floats), lanes.float(0.5))
        small = builder.sub(builder.bitcast(sum_, lanes.words), lanes.word(0x3F000000))
        rounded = builder.select(_is_small(builder, size, lanes), small, rounded)
        rounded = _at_most(builder, rounded, lanes.word(rounding.HALF_INFINITY))
    return _assembled(builder, (word, size, rounded), element, lanes)


def by_chance(builder: Any, value: Any, code: Any, element: Any, lanes: Lanes) -> Any:
    """Round float32 up or down by 16-bit codes, to a stored element; see `rounding.stochastic`."""
    if element == SINGLE:
        return value
    word, size = _split(builder, value, lanes)
    chance = builder.zext(code, lanes.words)
    if element == BRAIN:
        rounded, infinity = builder.lshr(builder.add(size, chance), lanes.word(16)), rounding.INFINITY >> 16
    else:
        rounded, infinity = _half_by_chance(builder, size, chance, lanes), rounding.HALF_INFINITY
    rounded = _at_most(builder, rounded, lanes.word(infinity - 1))
    endless = builder.icmp_unsigned("==", size, lanes.word(rounding.INFINITY))
    rounded = builder.select(endless, lanes.word(infinity), rounded)
    return _assembled(builder, (word, size, rounded), element, lanes)


def _split(builder: Any, value: Any, lanes: Lanes) -> tuple[Any, Any]:
    """Return (bits, bits of the magnitude)."""
    word = builder.bitcast(value, lanes.words)
    return word, builder.and_(word, lanes.word(rounding.MAGNITUDE))


def _is_small(builder: Any, size: Any, lanes: Lanes) -> Any:
    return builder.icmp_unsigned("<", size, lanes.word(rounding.HALF_SMALLEST_NORMAL))


def _at_most(builder: Any, word: Any, limit: Any) -> Any:
    return builder.select(builder.icmp_unsigned("<", word, limit), word, limit)


def _half_by_chance(builder: Any, size: Any, chance: Any, lanes: Lanes) -> Any:
    moved = builder.add(size, builder.lshr(chance, lanes.word(3)))
    normal = builder.sub(builder.lshr(moved, lanes.word(rounding.HALF_FIELD)), lanes.word(rounding.HALF_REBIAS))
    small = _is_small(builder, size, lanes)
    # Zero if the product would not fit an integer.
    below = builder.bitcast(builder.select(small, size, lanes.word(0)), lanes.floats)
    fixed = builder.fptoui(builder.fmul(below, lanes.float(2.0**40)), lanes.words)
    return builder.select(small, builder.lshr(builder.add(fixed, chance), lanes.word(16)), normal)


def _assembled(builder: Any, words: tuple[Any, Any, Any], element: Any, lanes: Lanes) -> Any:
    """Combine sign and rounded magnitude, or a quiet NaN, in 16 bits; ``words`` are bits, magnitude and rounded."""
    word, size, rounded = words
    if element == BRAIN:
        quiet = builder.or_(builder.lshr(size, lanes.word(16)), lanes.word(0x40))
    else:
        payload = builder.and_(builder.lshr(size, lanes.word(rounding.HALF_FIELD)), lanes.word(0x3FF))
        quiet = builder.or_(payload, lanes.word(rounding.HALF_INFINITY | 0x200))
    nan = builder.icmp_unsigned(">", size, lanes.word(rounding.INFINITY))
    sign = builder.and_(builder.lshr(word, lanes.word(16)), lanes.word(0x8000))
    return builder.trunc(builder.or_(sign, builder.select(nan, quiet, rounded)), lanes.halves)


def _from_half(builder: Any, word: Any, lanes: Lanes) -> Any:
    size = builder.shl(builder.and_(word, lanes.word(0x7FFF)), lanes.word(rounding.HALF_FIELD))
    rebias = rounding.HALF_REBIAS << rounding.HALF_FIELD
    normal = builder.add(size, lanes.word(rebias))
    # Infinity and NaN need the exponent field full: add the same bias again.
    endless = builder.icmp_unsigned(">=", size, lanes.word(rounding.HALF_INFINITY << rounding.HALF_FIELD))
    large = builder.select(endless, builder.add(normal, lanes.word(rebias)), normal)
    # Below 2**-14 the field is empty: reading it with an implicit one and subtracting that one gives the number.
    implicit = builder.bitcast(builder.add(size, lanes.word(rounding.HALF_SMALLEST_NORMAL)), lanes.floats)
    small = builder.bitcast(builder.fsub(implicit, lanes.float(2.0**-14)), lanes.words)
    tiny = builder.icmp_unsigned("<", size, lanes.word(1 << 23))
    sign = builder.shl(builder.and_(word, lanes.word(0x8000)), lanes.word(16))
    return builder.bitcast(builder.or_(sign, builder.select(tiny, small, large)), lanes.floats)


_ONE = Lanes(0)


@intrinsic
def widen(_context: Any, element: Any) -> Any:
    """Return the float32 of one element."""

    def generate(_ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return widened(builder, arguments[0], signature.args[0], _ONE)

    return types.float32(element), generate


@intrinsic
def nearest(_context: Any, array: Any, value: Any) -> Any:
    """Return ``value`` (float32) as an element of ``array``, rounded to nearest even."""

    def generate(_ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return nearest_even(builder, arguments[1], signature.args[0].dtype, _ONE)

    return array.dtype(array, types.float32), generate


@intrinsic
def stochastic(_context: Any, array: Any, value: Any, code: Any) -> Any:
    """Return ``value`` (float32) as an element of ``array``, rounded by a 16-bit ``code``."""

    def generate(_ctx: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return by_chance(builder, arguments[1], arguments[2], signature.args[0].dtype, _ONE)

    return array.dtype(array, types.float32, types.uint16), generate


def prefetch(builder: Any, address: Any, *, write: bool = False, near: int) -> None:
    """Prefetch the cache line of an address, to be read or written; ``near`` is 3 for the first cache, 2 for the next.

    An address outside the process's memory has no effect.
    """
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    as_pointer = builder.bitcast if isinstance(address.type, ir.PointerType) else builder.inttoptr
    builder.call(function, [as_pointer(address, byte), word(int(write)), word(near), word(1)])
