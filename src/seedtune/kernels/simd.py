"""Sixteen-wide sums of weighted rows, written as LLVM vectors.

The auto-vectoriser cannot keep a block of accumulators in registers over a loop of rows; these few
lines of vector code can.  They are portable: LLVM lowers the vectors to whatever the processor has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from seedtune.kernels.bits import BITS16

WIDTH = 16
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_WORDS = ir.VectorType(ir.IntType(32), WIDTH)
_HALVES = ir.VectorType(ir.IntType(16), WIDTH)


def _load(builder: Any, address: Any, element: Any) -> Any:
    """Sixteen floats from float32 or from the bits of bfloat16 at ``address``."""
    if element != BITS16:
        return builder.load(builder.inttoptr(address, _FLOATS.as_pointer()), align=4)
    halves = builder.load(builder.inttoptr(address, _HALVES.as_pointer()), align=2)
    shift = ir.Constant(_WORDS, [16] * WIDTH)
    return builder.bitcast(builder.shl(builder.zext(halves, _WORDS), shift), _FLOATS)


def _splat(builder: Any, value: Any) -> Any:
    single = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, single, ir.Constant(_WORDS, [0] * WIDTH))


def _sum_rows(blocks: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = signature.args[0].dtype
        _, out, rows, stride, weights, count = arguments
        size = ir.Constant(rows.type, WIDTH * (2 if element == BITS16 else 4))
        sums = [cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [0.0] * WIDTH)) for _ in range(blocks)]
        with cgutils.for_range(builder, count) as loop:
            place = builder.add(weights, builder.mul(loop.index, ir.Constant(weights.type, 4)))
            weight = _splat(builder, builder.load(builder.inttoptr(place, ir.FloatType().as_pointer())))
            address = builder.add(rows, builder.mul(loop.index, stride))
            for block in sums:
                product = builder.fmul(weight, _load(builder, address, element), flags=("fast",))
                builder.store(builder.fadd(builder.load(block), product, flags=("fast",)), block)
                address = builder.add(address, size)
        step = ir.Constant(out.type, WIDTH * 4)
        for block in sums:
            builder.store(builder.load(block), builder.inttoptr(out, _FLOATS.as_pointer()), align=4)
            out = builder.add(out, step)
        return context.get_dummy_value()

    def typing(_context: Any, like: Any, out: Any, rows: Any, stride: Any, weights: Any, count: Any) -> Any:
        return types.void(like, *([types.intp] * 5)), generate

    return typing


sum_rows_1 = intrinsic(_sum_rows(1))
"""out[0:16] = Σ_{j < count} weights[j]·rows[j][0:16]; addresses and the stride of rows in bytes."""

sum_rows_4 = intrinsic(_sum_rows(4))
"""As ``sum_rows_1`` over 64 columns."""
