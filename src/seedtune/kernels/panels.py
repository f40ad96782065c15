"""Products of few bfloat16 rows with a weight that lies in panels, on CPUs that multiply bfloat16 (AVX512-BF16).

A panel holds 64 outputs: for each pair of inputs the pairs of all 64, (inputs/2, 64, 2).  Libraries block for many
rows; here up to six rows × 64 outputs are summed in registers over all inputs, so that a panel is read from memory
once and from the cache for every further six rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba as nb
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from seedtune.kernels import elements
from seedtune.kernels.caching import njit

WIDTH = 64
"""Outputs of a panel."""
_VECTORS = 4
_LANES = elements.Lanes(16)
_DOT = "llvm.x86.avx512bf16.dpbf16ps.512"
_PREFETCH_READ_L2 = (0, 2, 1)


class _Brain(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Brain)

    def __hash__(self) -> int:
        return hash(_Brain)


_PAIRS = ir.VectorType(_Brain(), 32)
"""Sixteen pairs of bfloat16."""


@cache
def available() -> bool:
    """Whether this processor has the instruction, and numba compiles for it."""
    overridden = nb.config.CPU_NAME is not None or nb.config.CPU_FEATURES is not None
    return not overridden and bool(binding.get_host_cpu_features().get("avx512bf16", False))


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _moved(builder: Any, address: Any, steps: Any, stride: Any) -> Any:
    stride = ir.Constant(address.type, stride) if isinstance(stride, int) else stride
    steps = ir.Constant(address.type, steps) if isinstance(steps, int) else steps
    return builder.add(address, builder.mul(steps, stride))


def _broadcast(builder: Any, word: Any) -> Any:
    """One pair of inputs in every lane."""
    single = builder.insert_element(ir.Constant(_LANES.words, ir.Undefined), word, ir.IntType(32)(0))
    return builder.bitcast(builder.shuffle_vector(single, single, _LANES.word(0)), _PAIRS)


def _tile(rows: int) -> Any:
    """The code for ``rows`` × 64 outputs."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        out, out_stride, x, x_stride, panel, start, pairs, ahead = arguments
        dot = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_LANES.floats, [_LANES.floats, _PAIRS, _PAIRS]), _DOT
        )
        firsts = [builder.load(_at(builder, _moved(builder, start, v, 64), _LANES.floats), align=4) for v in range(4)]
        sums = [[cgutils.alloca_once_value(builder, first) for first in firsts] for _ in range(rows)]
        with cgutils.for_range(builder, pairs) as loop:
            _prefetch(builder, _moved(builder, ahead, loop.index, 64))
            place = _moved(builder, panel, loop.index, 4 * WIDTH)
            weights = [
                builder.load(_at(builder, _moved(builder, place, v, 64), _PAIRS), align=2) for v in range(_VECTORS)
            ]
            for row, line in enumerate(sums):
                at = _moved(builder, _moved(builder, x, row, x_stride), loop.index, 4)
                pair = _broadcast(builder, builder.load(_at(builder, at, ir.IntType(32)), align=2))
                for weight, place_of_sum in zip(weights, line, strict=True):
                    builder.store(builder.call(dot, [builder.load(place_of_sum), pair, weight]), place_of_sum)
        for row, line in enumerate(sums):
            for v, place_of_sum in enumerate(line):
                rounded = elements.nearest_even(builder, builder.load(place_of_sum), elements.BRAIN, _LANES)
                target = _moved(builder, _moved(builder, out, row, out_stride), v, 32)
                builder.store(rounded, _at(builder, target, _LANES.halves), align=2)
        return context.get_dummy_value()

    def typing(
        _context: Any, out: Any, out_stride: Any, x: Any, x_stride: Any, panel: Any, start: Any, pairs: Any, ahead: Any
    ) -> Any:
        return types.void(*([types.intp] * 8)), generate

    return intrinsic(typing)


def _prefetch(builder: Any, address: Any) -> None:
    byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
    function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(function, [builder.inttoptr(address, byte), *(word(n) for n in _PREFETCH_READ_L2)])


_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = (_tile(rows) for rows in range(1, 7))


@nb.njit(nogil=True)
def _rows(
    count: Any, out: Any, out_stride: Any, x: Any, x_stride: Any, panel: Any, start: Any, pairs: Any, ahead: Any
) -> None:  # pragma: no cover
    if count == 6:
        _tile_6(out, out_stride, x, x_stride, panel, start, pairs, ahead)
    elif count == 5:
        _tile_5(out, out_stride, x, x_stride, panel, start, pairs, ahead)
    elif count == 4:
        _tile_4(out, out_stride, x, x_stride, panel, start, pairs, ahead)
    elif count == 3:
        _tile_3(out, out_stride, x, x_stride, panel, start, pairs, ahead)
    elif count == 2:
        _tile_2(out, out_stride, x, x_stride, panel, start, pairs, ahead)
    else:
        _tile_1(out, out_stride, x, x_stride, panel, start, pairs, ahead)


@nb.njit(nogil=True)
def _panel(out: Any, x: Any, panels: Any, start: Any, p: Any, first: Any, last: Any) -> None:  # pragma: no cover
    """One panel's outputs of rows ``first`` to ``last``, in even shares: two rows alone keep no unit busy."""
    inputs, outputs = x.shape[1], out.shape[1]
    panel = panels.ctypes.data + 128 * inputs * p
    blocks = (last - first + 5) // 6
    done = first
    for block in range(blocks):
        count = (last - done) // (blocks - block)
        _rows(
            count,
            out.ctypes.data + 2 * (outputs * done + 64 * p),
            2 * outputs,
            x.ctypes.data + 2 * inputs * done,
            2 * inputs,
            panel,
            start.ctypes.data + 256 * p,
            inputs // 2,
            panel + 128 * inputs + 32 * inputs * block,
        )
        done += count


@njit(parallel=True, cache=True, nogil=True)
def _multiply(out: Any, x: Any, panels: Any, start: Any) -> None:  # pragma: no cover
    rows, count = x.shape[0], out.shape[1] // 64
    odd = count % 2
    for task in nb.prange(count + odd):
        if odd == 0 or 0 < task < count:
            _panel(out, x, panels, start, task - odd, 0, rows)
        elif task == 0:  # of an odd number two threads share the last panel, one in its first turn, one in its last
            _panel(out, x, panels, start, count - 1, 0, rows // 2)
        else:
            _panel(out, x, panels, start, count - 1, rows // 2, rows)


def multiply(
    out: NDArray[np.uint16], x: NDArray[np.uint16], panels: NDArray[np.uint16], start: NDArray[np.float32]
) -> None:
    """Write out = start + x·Wᵀ, summed in float32 and rounded once.

    Shapes: out (rows, outputs), x (rows, inputs), both C contiguous bits of bfloat16, panels (outputs·inputs,)
    and start (outputs,), the bias; outputs a multiple of 64, inputs even.  Raises ValueError for others.
    """
    (rows, outputs), inputs = out.shape, x.shape[1]
    if outputs % WIDTH or inputs % 2 or panels.size != outputs * inputs or x.shape[0] != rows or start.size != outputs:
        raise ValueError(f"out {out.shape}, x {x.shape}, {panels.size} panel elements, {start.size} start values")
    _multiply(out, x, panels, start)
