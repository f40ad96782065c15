"""Code generation for a tile: rows × outputs of a product summed in registers, written as LLVM vectors.

The auto-vectoriser cannot keep a block of sums in registers over a loop; this code can, for any width of vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from seedtune.numerics.machine import elements
from seedtune.numerics.machine.caching import inner
from seedtune.numerics.machine.vectors import BITS16

_DOT = "llvm.x86.avx512bf16.dpbf16ps.512"


@dataclass(frozen=True, slots=True)
class Tile:
    """The block summed in registers at a time: up to ``rows`` rows × ``vectors`` vectors of ``lanes`` outputs."""

    lanes: int
    vectors: int
    rows: int

    @property
    def width(self) -> int:
        """Number of outputs of a panel."""
        return self.lanes * self.vectors

    def __str__(self) -> str:
        return f"{self.rows}×{self.width}"


class _Brain(ir.Type):
    """LLVM's bfloat type, which llvmlite does not define."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Brain)

    def __hash__(self) -> int:
        return hash(_Brain)


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _moved(builder: Any, address: Any, steps: Any, stride: Any) -> Any:
    stride = ir.Constant(address.type, stride) if isinstance(stride, int) else stride
    steps = ir.Constant(address.type, steps) if isinstance(steps, int) else steps
    return builder.add(address, builder.mul(steps, stride))


def _broadcast(builder: Any, address: Any, lanes: elements.Lanes) -> Any:
    """Load the 32 bits at ``address`` into every lane."""
    word = builder.load(_at(builder, address, ir.IntType(32)), align=2)
    single = builder.insert_element(ir.Constant(lanes.words, ir.Undefined), word, ir.IntType(32)(0))
    return builder.shuffle_vector(single, single, lanes.word(0))


def unpack_order(lanes: int) -> list[int]:
    """Return the positions of outputs 0, 1, … of two vectors in a panel, so that interleaving with zeros widens them.

    Vectors interleave within 128 bits: their low halves give the first vector, their high halves the second.
    """
    low = [8 * block + i for block in range(lanes // 4) for i in range(4)]
    return low + [place + 4 for place in low]


class FusedMultiplyAdd:
    """Instructions of ``fma32`` for weights of one element type."""

    def __init__(self, element: Any, tile: Tile) -> None:
        self.tile, self.lanes = tile, elements.Lanes(tile.lanes)
        self.narrow = element == BITS16
        self.step = tile.width * (2 if self.narrow else 4)

    def weights(self, builder: Any, place: Any) -> list[Any]:
        """Load the float32 vectors of one step of a panel."""
        vectors, size = range(self.tile.vectors), 4 * self.tile.lanes
        if not self.narrow:
            kind = self.lanes.floats
            return [builder.load(_at(builder, _moved(builder, place, v, size), kind), align=4) for v in vectors]
        found = []
        for v in vectors[::2]:
            found += self._widened(builder, _moved(builder, place, v, size // 2))
        return found

    def _widened(self, builder: Any, place: Any) -> list[Any]:
        lanes = self.tile.lanes
        halves = ir.VectorType(ir.IntType(16), 2 * lanes)
        raw = builder.load(_at(builder, place, halves), align=2)
        order, zeros = unpack_order(lanes), ir.Constant(halves, [0] * (2 * lanes))
        found = []
        for own in (order[:lanes], order[lanes:]):
            mask = [index for place in own for index in (place, 2 * lanes + place)]
            mixed = builder.shuffle_vector(zeros, raw, ir.Constant(ir.VectorType(ir.IntType(32), 2 * lanes), mask))
            found.append(builder.bitcast(mixed, self.lanes.floats))
        return found

    def input(self, builder: Any, address: Any) -> Any:
        """Load one input into every lane."""
        return builder.bitcast(_broadcast(builder, address, self.lanes), self.lanes.floats)

    def add(self, builder: Any, sums: Any, x: Any, weight: Any) -> Any:
        """Return sums + x·weight, rounded once."""
        kind = ir.FunctionType(self.lanes.floats, [self.lanes.floats] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{self.tile.lanes}f32")
        return builder.call(fma, [x, weight, sums])


class PairDot:
    """Instructions of ``bf16dot``."""

    def __init__(self, _element: Any, tile: Tile) -> None:
        self.tile, self.lanes = tile, elements.Lanes(tile.lanes)
        self.pairs = ir.VectorType(_Brain(), 2 * tile.lanes)
        self.step = 4 * tile.width

    def weights(self, builder: Any, place: Any) -> list[Any]:
        """Load the vectors of pairs of one step of a panel."""
        size = 4 * self.tile.lanes
        places = [_moved(builder, place, v, size) for v in range(self.tile.vectors)]
        return [builder.load(_at(builder, at, self.pairs), align=2) for at in places]

    def input(self, builder: Any, address: Any) -> Any:
        """Load one pair of inputs into every lane."""
        return builder.bitcast(_broadcast(builder, address, self.lanes), self.pairs)

    def add(self, builder: Any, sums: Any, x: Any, weight: Any) -> Any:
        """Return sums + x₀·weight₀ + x₁·weight₁, rounded as the processor does."""
        kind = ir.FunctionType(self.lanes.floats, [self.lanes.floats, self.pairs, self.pairs])
        dot = cgutils.get_or_insert_function(builder.module, kind, _DOT)
        return builder.call(dot, [sums, x, weight])


def _tile(code: Any, tile: Tile, rows: int) -> Any:
    """Compile a function that writes ``rows`` rows of one panel's outputs.

    Its arguments: an array of the outputs' type; addresses of the outputs, inputs, panel and start values; the strides
    of outputs and inputs in bytes; the number of steps; and the address to prefetch from.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = signature.args[0].dtype
        make = code(element, tile)
        _, out, out_stride, x, x_stride, panel, start, steps, ahead = arguments
        lanes, size = make.lanes, 4 * tile.lanes
        firsts = [
            builder.load(_at(builder, _moved(builder, start, v, size), lanes.floats), align=4)
            for v in range(tile.vectors)
        ]
        sums = [[cgutils.alloca_once_value(builder, first) for first in firsts] for _ in range(rows)]
        with cgutils.for_range(builder, steps) as loop:
            elements.prefetch(builder, _moved(builder, ahead, loop.index, 64), near=2)
            weights = make.weights(builder, _moved(builder, panel, loop.index, make.step))
            for row, line in enumerate(sums):
                at = _moved(builder, _moved(builder, x, row, x_stride), loop.index, 4)
                value = make.input(builder, at)
                for weight, place in zip(weights, line, strict=True):
                    builder.store(make.add(builder, builder.load(place), value, weight), place)
        width = tile.lanes * (2 if element == BITS16 else 4)
        for row, line in enumerate(sums):
            for v, place in enumerate(line):
                result = elements.nearest_even(builder, builder.load(place), element, lanes)
                target = _moved(builder, _moved(builder, out, row, out_stride), v, width)
                kind = elements.stored(element, lanes)
                builder.store(result, _at(builder, target, kind), align=2)
        return context.get_dummy_value()

    def typing(
        _context: Any, like: Any, out: Any, os: Any, x: Any, xs: Any, panel: Any, start: Any, steps: Any, ahead: Any
    ) -> Any:
        return types.void(like, *([types.intp] * 8)), generate

    return intrinsic(typing)


def tiles_of(code: Any, tile: Tile) -> Any:
    """Compile a function that runs the tile with ``count`` rows, 1 to ``tile.rows``."""
    smaller = tiles_of(code, Tile(tile.lanes, tile.vectors, tile.rows - 1)) if tile.rows > 1 else None
    mine, most = _tile(code, tile, tile.rows), tile.rows
    if smaller is None:

        @inner()
        def only(_count, like, out, os, x, xs, panel, start, steps, ahead):  # type: ignore[no-untyped-def]
            mine(like, out, os, x, xs, panel, start, steps, ahead)

        return only

    @inner()
    def one_of(count, like, out, os, x, xs, panel, start, steps, ahead):  # type: ignore[no-untyped-def]
        if count == most:
            mine(like, out, os, x, xs, panel, start, steps, ahead)
        else:
            smaller(count, like, out, os, x, xs, panel, start, steps, ahead)

    return one_of
