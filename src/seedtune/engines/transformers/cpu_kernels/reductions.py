"""Sums over a row in a fixed number of lanes, so that every processor gives the same bits; choices by them.

Number i of a row is added to lane i % 32; at the end halves are added onto halves.  A vectoriser that is free to
reorder a sum takes as many lanes as the processor has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.bfloat16 import float_of, load
from seedtune.engines.transformers.cpu_kernels.exponential import exp
from seedtune.numerics.machine import elements
from seedtune.numerics.machine.caching import inner, njit
from seedtune.numerics.machine.vectors import BITS16, WIDTH, fused, load_floats

Array = NDArray[Any]

LANES = 2 * WIDTH
_ONE, _INDEX = elements.Lanes(0), ir.IntType(32)
_FLOATS = ir.VectorType(ir.FloatType(), WIDTH)
_BUFFER = ir.ArrayType(ir.FloatType(), LANES)
Combine = Callable[[Any, list[Any], Any], Any]
"""(builder, vectors of the arrays, accumulator) → new accumulator."""


def _reduction(arrays: int, combine: Combine, fold: Callable[[Any, Any, Any], Any], first: float) -> Any:
    """Build an intrinsic over (an array of the dtype, an address for each of ``arrays``, a count); ``first`` pads."""

    def generate(_context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = signature.args[0].dtype
        *addresses, count = arguments[1:]
        size = 2 if element == BITS16 else 4
        results = [cgutils.alloca_once_value(builder, ir.Constant(_FLOATS, [first] * WIDTH)) for _ in range(2)]
        whole = builder.udiv(count, ir.Constant(count.type, LANES))
        with cgutils.for_range(builder, whole) as loop:
            start = builder.mul(loop.index, ir.Constant(count.type, LANES * size))
            for half, result in enumerate(results):
                step = builder.add(start, ir.Constant(count.type, half * WIDTH * size))
                vectors = [load_floats(builder, builder.add(at, step), element) for at in addresses]
                builder.store(combine(builder, vectors, builder.load(result)), result)
        done = builder.mul(whole, ir.Constant(count.type, LANES))
        padding = first if arrays == 1 else 0.0
        rest = [_rest(builder, at, done, count, element, padding) for at in addresses]
        for half, result in enumerate(results):
            vectors = [_half(builder, buffer, half) for buffer in rest]
            builder.store(combine(builder, vectors, builder.load(result)), result)
        low, high = (builder.load(result) for result in results)
        return _folded(builder, fold(builder, low, high), fold)

    def typing(_context: Any, like: Any, *places: Any) -> Any:
        return types.float32(like, *([types.intp] * (arrays + 1))), generate

    return typing


def _rest(builder: Any, address: Any, done: Any, count: Any, element: Any, padding: float) -> Any:
    """Copy an array's elements from ``done`` to ``count`` into a buffer of `LANES` floats, padded with ``padding``."""
    buffer = cgutils.alloca_once(builder, _BUFFER)
    builder.store(ir.Constant(_BUFFER, [padding] * LANES), buffer)
    size = 2 if element == BITS16 else 4
    with cgutils.for_range(builder, builder.sub(count, done)) as loop:
        at = builder.add(address, builder.mul(builder.add(done, loop.index), ir.Constant(count.type, size)))
        value = builder.load(builder.inttoptr(at, elements.stored(element, _ONE).as_pointer()))
        target = builder.gep(buffer, [_INDEX(0), builder.trunc(loop.index, _INDEX)])
        builder.store(elements.widened(builder, value, element, _ONE), target)
    return buffer


def _half(builder: Any, buffer: Any, half: int) -> Any:
    place = builder.gep(buffer, [_INDEX(0), _INDEX(half * WIDTH)])
    return builder.load(builder.bitcast(place, _FLOATS.as_pointer()), align=4)


def _folded(builder: Any, vector: Any, fold: Any) -> Any:
    """Reduce a vector's lanes to one number: halves onto halves."""
    width = WIDTH
    while width > 1:
        width //= 2
        masks = (list(range(first, first + width)) for first in (0, width))
        kind = ir.VectorType(_INDEX, width)
        low, high = (builder.shuffle_vector(vector, vector, ir.Constant(kind, mask)) for mask in masks)
        vector = fold(builder, low, high)
    return builder.extract_element(vector, _INDEX(0))


def _sum(builder: Any, x: Any, y: Any) -> Any:
    return builder.fadd(x, y)


def _larger(builder: Any, x: Any, y: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


def _maximum(builder: Any, x: Any, y: Any) -> Any:
    """Return the larger number, or NaN if either is NaN."""
    larger = builder.select(builder.fcmp_unordered(">", x, y), x, y)
    return builder.select(builder.fcmp_unordered("uno", y, y), y, larger)


_dot = _reduction(2, lambda builder, vectors, total: fused(builder, vectors[0], vectors[1], total), _sum, 0.0)
_total = _reduction(1, lambda builder, vectors, total: _sum(builder, total, *vectors), _sum, 0.0)
_top = _reduction(1, lambda builder, vectors, top: _larger(builder, top, *vectors), _larger, float("-inf"))

_maximum_of = _reduction(1, lambda builder, vectors, top: _maximum(builder, vectors[0], top), _maximum, float("-inf"))


@intrinsic
def dot_in_lanes(context: Any, like: Any, x: Any, y: Any, count: Any) -> Any:
    """Return Σ x_i·y_i over ``count`` elements of the type of ``like`` at two addresses; each addition rounds once."""
    return _dot(context, like, x, y, count)


@intrinsic
def total_in_lanes(context: Any, like: Any, x: Any, count: Any) -> Any:
    """Return Σ x_i over ``count`` elements of the type of ``like`` at an address."""
    return _total(context, like, x, count)


@intrinsic
def top_in_lanes(context: Any, like: Any, x: Any, count: Any) -> Any:
    """Return the largest x_i over ``count`` elements of the type of ``like`` at an address."""
    return _top(context, like, x, count)


@intrinsic
def maximum_in_lanes(context: Any, like: Any, x: Any, count: Any) -> Any:
    """As ``top_in_lanes``, but NaN if any element is NaN."""
    return _maximum_of(context, like, x, count)


_BLOCK = 1024
"""Numbers scanned at once for the wanted one."""


@inner()
def _holds(part: Any, wanted: Any) -> Any:  # pragma: no cover
    """Count the numbers of a part that equal ``wanted`` or are NaN."""
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


def largest(x: Array) -> Array:
    """Return the index of each row's first maximum, (rows,); NaN is larger than all other numbers, as in ``torch.max``.

    x (rows, n) in float32 or the bits of bfloat16, C contiguous, n ≥ 1.
    """
    out = np.empty(x.shape[0], np.int64)
    _largest(out, x)
    return out


_TINY = np.float32(-87.0)
"""Where e^x leaves float32's normal numbers; a token below it has no chance."""

_COARSE, _FINE = 0x3F80_0000 >> 15, 1 << 15
"""Masses of 0 to 1 by the upper bits of their float32, and one such group by the lower bits."""


@inner()
def _block_total(masses: Any, first: Any) -> Any:  # pragma: no cover
    count = min(_BLOCK, masses.size - first)
    return np.float64(total_in_lanes(masses, masses[first:].ctypes.data, count))


@inner()
def _cut(masses: Any, top_p: Any) -> Any:  # pragma: no cover
    """Return the largest mass such that those at least as large sum to ``top_p`` of all; the largest mass is 1."""
    groups, parts = np.zeros(_COARSE + 1), np.zeros(_FINE)
    patterns = masses.view(np.int32)
    for j in range(masses.size):
        groups[patterns[j] >> 15] += masses[j]
    above, wanted, group, part = 0.0, top_p * groups.sum(), _COARSE, _FINE - 1
    while group > 0 and above + groups[group] < wanted:
        above += groups[group]
        group -= 1
    for j in range(masses.size):
        if patterns[j] >> 15 == group:
            parts[patterns[j] & (_FINE - 1)] += masses[j]
    while part > 0 and above + parts[part] < wanted:
        above += parts[part]
        part -= 1
    return float_of(nb.uint32(group * _FINE + part))


@inner()
def _at(masses: Any, point: Any) -> Any:  # pragma: no cover
    """Return the place that holds the share ``point`` of all mass; 0 if there is none."""
    total = 0.0
    for first in range(0, masses.size, _BLOCK):
        total += _block_total(masses, first)
    target, before, place = min(point * total, np.nextafter(total, 0.0)), 0.0, 0
    for first in range(0, masses.size, _BLOCK):
        after = before + _block_total(masses, first)
        if after > target:
            for j in range(first, min(first + _BLOCK, masses.size)):
                before += masses[j]
                if masses[j] > 0.0:
                    place = j
                    if before > target:
                        break
            break
        before = after
    return place


@njit(parallel=True, cache=True, nogil=True)
def _drawn(out: Any, x: Any, masses: Any, temperature: Any, top_p: Any, points: Any) -> None:  # pragma: no cover
    for i in nb.prange(x.shape[0]):
        row, own = x[i], masses[i]
        top = top_in_lanes(row, row.ctypes.data, row.size)
        for j in range(row.size):
            power = (load(row[j]) - top) / temperature
            mass = exp(power)
            own[j] = mass if power > _TINY else np.float32(0.0)
        if top_p < 1.0:
            least = _cut(own, top_p)
            for j in range(row.size):
                own[j] = own[j] if own[j] >= least else np.float32(0.0)
        out[i] = _at(own, points[i])


def drawn(x: Array, points: Array, *, temperature: float, top_p: float) -> Array:
    """Return an index a row with chance e^(x/temperature) over the row's sum, (rows,), by inverse CDF at ``points``.

    Only the most likely indices, with together ``top_p`` of the chances, are drawn; NaN has no chance, and a row
    without any gives 0.  x as in `largest`; ``points`` (rows,) in [0, 1], float32.
    """
    out, masses = np.empty(x.shape[0], np.int64), np.empty(x.shape, np.float32)
    _drawn(out, x, masses, np.float32(max(temperature, 1e-30)), np.float64(top_p), points)
    return out
