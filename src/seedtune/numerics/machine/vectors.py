"""Sixteen-wide sums of weighted rows and perturbations, written as LLVM vectors.

The auto-vectoriser cannot keep a block of accumulators in registers over a loop of rows, nor see the vectors in a
loop that also looks up a table; this vector code can.  It is portable: LLVM lowers the vectors to the processor's
own.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from seedtune.numerics.machine import elements, processor

WIDTH = 16
_LANES = elements.Lanes(WIDTH)
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_WORDS = ir.VectorType(ir.IntType(32), WIDTH)
_HALVES = ir.VectorType(ir.IntType(16), WIDTH)


def load_floats(builder: Any, address: Any, element: Any) -> Any:
    """Load sixteen floats from float32 or from the bits of bfloat16 at ``address``."""
    if element != BITS16:
        return builder.load(builder.inttoptr(address, _FLOATS.as_pointer()), align=4)
    halves = builder.load(builder.inttoptr(address, _HALVES.as_pointer()), align=2)
    shift = ir.Constant(_WORDS, [16] * WIDTH)
    return builder.bitcast(builder.shl(builder.zext(halves, _WORDS), shift), _FLOATS)


def _splat(builder: Any, value: Any) -> Any:
    lanes = ir.Constant(ir.VectorType(value.type, WIDTH), ir.Undefined)
    single = builder.insert_element(lanes, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, single, ir.Constant(_WORDS, [0] * WIDTH))


def fused(builder: Any, x: Any, y: Any, total: Any) -> Any:
    """Return x·y + total, rounded once."""
    kind = ir.FunctionType(_FLOATS, [_FLOATS] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32"), [x, y, total])


def _sum_in_order(blocks: int) -> Any:
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
                product = builder.fmul(weight, load_floats(builder, address, element))
                builder.store(builder.fadd(builder.load(block), product), block)
                address = builder.add(address, size)
        _store_floats(builder, sums, out)
        return context.get_dummy_value()

    def typing(_context: Any, like: Any, out: Any, rows: Any, stride: Any, weights: Any, count: Any) -> Any:
        return types.void(like, *([types.intp] * 5)), generate

    return typing


def _store_floats(builder: Any, sums: list[Any], out: Any) -> None:
    """Store sums consecutively at address ``out``."""
    for index, block in enumerate(sums):
        place = builder.add(out, ir.Constant(out.type, WIDTH * 4 * index))
        builder.store(builder.load(block), builder.inttoptr(place, _FLOATS.as_pointer()), align=4)


def _sum_heads(blocks: int, heads: int) -> Any:
    """Build an intrinsic that reads and widens each row once for all heads."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = signature.args[0].dtype
        _, out, out_step, rows, stride, weights, weight_step, count, ahead = arguments
        size, zeros = WIDTH * (2 if element == BITS16 else 4), ir.Constant(_FLOATS, [0.0] * WIDTH)
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(blocks)] for _ in range(heads)]

        def moved(address: Any, step: Any, times: int) -> Any:
            return builder.add(address, builder.mul(step, ir.Constant(step.type, times)))

        with cgutils.for_range(builder, count) as loop:
            address = builder.add(rows, builder.mul(loop.index, stride))
            places = [builder.add(address, ir.Constant(address.type, size * block)) for block in range(blocks)]
            for place in places:
                elements.prefetch(builder, builder.add(place, ahead), near=2)
            vectors = [load_floats(builder, place, element) for place in places]
            at = builder.add(weights, builder.mul(loop.index, ir.Constant(weights.type, 4)))
            for head, line in enumerate(sums):
                place = builder.inttoptr(moved(at, weight_step, head), ir.FloatType().as_pointer())
                weight = _splat(builder, builder.load(place))
                for block, vector in zip(line, vectors, strict=True):
                    builder.store(fused(builder, weight, vector, builder.load(block)), block)
        for head, line in enumerate(sums):
            _store_floats(builder, line, moved(out, out_step, head))
        return context.get_dummy_value()

    def typing(
        _context: Any,
        like: Any,
        out: Any,
        out_step: Any,
        rows: Any,
        stride: Any,
        weights: Any,
        step: Any,
        count: Any,
        ahead: Any,
    ) -> Any:
        return types.void(like, *([types.intp] * 8)), generate

    return intrinsic(typing)


WIDE = 4 if processor.vector_name() in ("AVX-512", "AVX512-BF16") else 1
"""Vectors of columns that `sum_heads_wide` sums at a time: for four heads their sums fill half of the registers."""

sum_heads_1 = tuple(_sum_heads(1, heads) for heads in range(1, 5))
"""out[h][0:16] = Σ_{j < count} weights[h][j]·rows[j][0:16] for 1, 2, 3 and 4 heads h.

One chain of fused multiply-adds from 0 in the order of rows.  The arguments are addresses, the strides in bytes from
head to head and from row to row, and how far ahead of each row memory is prefetched.
"""

sum_heads_wide = sum_heads_1 if WIDE == 1 else tuple(_sum_heads(WIDE, heads) for heads in range(1, 5))
"""As ``sum_heads_1`` over 16·WIDE columns."""

sum_in_order_1 = intrinsic(_sum_in_order(1))
"""out[0:16] = Σ_{j < count} weights[j]·rows[j][0:16], each product and sum rounded on its own.

Summed from 0 in the order of rows.  The arguments are addresses, and the stride of rows in bytes.
"""

sum_in_order_4 = intrinsic(_sum_in_order(4))
"""As ``sum_in_order_1`` over 64 columns."""

sum_in_order_8 = intrinsic(_sum_in_order(8))
"""As ``sum_in_order_1`` over 128 columns."""


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Return the address of ``array[index]``."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [index])


def _vector(builder: Any, place: Any, element: Any) -> tuple[Any, int]:
    """Return an address as a pointer to sixteen stored elements, and the guaranteed alignment."""
    pointer = builder.bitcast(place, elements.stored(element, _LANES).as_pointer())
    return pointer, 4 if element == elements.SINGLE else 2


def _perturb_16(*, where: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        target, base, index, drawn, place, scale = arguments[:6]
        source, align = _vector(builder, _place(context, builder, kinds[1], base, index), kinds[1].dtype)
        value = elements.widened(builder, builder.load(source, align=align), kinds[1].dtype, _LANES)
        normal, align = _vector(builder, _place(context, builder, kinds[3], drawn, place), elements.SINGLE)
        product = builder.fmul(_splat(builder, scale), builder.load(normal, align=align))
        result = builder.fadd(value, product)
        if where:
            ids, _ = _vector(builder, _place(context, builder, kinds[6], arguments[6], index), kinds[6].dtype)
            own = builder.icmp_unsigned("==", builder.load(ids, align=2), _splat(builder, arguments[7]))
            result = builder.select(own, result, value)
        result = elements.nearest_even(builder, result, kinds[0].dtype, _LANES)
        goal, align = _vector(builder, _place(context, builder, kinds[0], target, index), kinds[0].dtype)
        builder.store(result, goal, align=align)
        return context.get_dummy_value()

    return generate


@intrinsic
def perturb_16(_context: Any, out: Any, weights: Any, at: Any, noise: Any, first: Any, sigma: Any) -> Any:
    """out[at:][:16] = nearest(weights[at:][:16] + sigma·noise[first:][:16]), product and sum each rounded."""
    return types.void(out, weights, types.uint64, noise, types.uint64, types.float32), _perturb_16(where=False)


@intrinsic
def perturb_16_where(
    _context: Any, out: Any, weights: Any, at: Any, noise: Any, first: Any, sigma: Any, ids: Any, own: Any
) -> Any:
    """As ``perturb_16`` where ids[at:][:16] (uint16) is ``own``; elsewhere nearest(weights[at:][:16])."""
    place = types.uint64
    kinds = types.void(out, weights, place, noise, place, types.float32, ids, types.uint16)
    return kinds, _perturb_16(where=True)


def _prefetch(*, write: bool) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments)
        elements.prefetch(builder, place, write=write, near=3)
        return context.get_dummy_value()

    def typing(_context: Any, array: Any, _index: Any) -> Any:
        return types.void(array, types.uint64), generate

    return typing


prefetch_read = intrinsic(_prefetch(write=False))
"""Prefetch the cache line of ``array[index]`` for reading; an index beyond the end has no effect."""

prefetch_write = intrinsic(_prefetch(write=True))
"""As ``prefetch_read``, for writing."""


BITS16 = types.uint16
