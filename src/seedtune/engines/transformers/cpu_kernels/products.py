"""Matrix products x·Wᵀ with weights packed into panels, on the CPU, in two kinds of arithmetic.

``fma32``: every output is one float32 chain of fused multiply-adds, y = fma(x_k, w_k, y) over ascending k, starting
from the bias. It depends on nothing else: not on other rows, the threads, or the width of the processor's vectors,
so all processors give the same bits.  Weights in bfloat16 are widened in registers: half the memory, no extra time.

``bf16dot``: the same chain over pairs of inputs with the processor's bfloat16 dot product (AVX512-BF16).

A panel holds the weights of `Tile.width` outputs: for each step over the inputs, those of all its outputs
contiguously.  A tile of rows × one panel is summed in registers over all inputs: a panel is read from memory once,
and from the cache for every further tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import overload
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.tiles import FusedMultiplyAdd, PairDot, Tile, tiles_of, unpack_order
from seedtune.numerics.machine import processor
from seedtune.numerics.machine.caching import inner, njit

Array = NDArray[Any]
ProductKind = Literal["fma32", "bf16dot"]
GROUP = 192
"""Rows whose inputs stay in the cache while all panels are read."""


_TILES = {
    "AVX512-BF16": Tile(16, 2, 12),
    "AVX-512": Tile(16, 2, 12),
    "AVX2": Tile(8, 2, 6),
    "NEON": Tile(4, 4, 6),
}
"""Sums, weights and one input fill the 32 (AVX2: 16) registers."""

FMA = _TILES.get(processor.vector_name(), Tile(4, 2, 2))
DOT = Tile(16, 4, 6)


def available(kind: ProductKind, *, bfloat16: bool) -> bool:
    """Return whether kernels of this kind can be compiled for this processor, for weights in bfloat16 or float32."""
    if kind == "bf16dot":
        return bfloat16 and processor.vector_name() == "AVX512-BF16"
    return processor.vector_name() in _TILES


def tile_of(kind: ProductKind) -> Tile:
    """Return the tile of a kind of product on this processor."""
    return FMA if kind == "fma32" else DOT


@inner()
def _fill(panel: Any, weight: Any, places: Any, first: Any) -> None:  # pragma: no cover
    """Pack a panel (steps, width) from the rows of ``weight`` (outputs, steps) starting at ``first``; 0 beyond them."""
    steps, width = weight.shape[1], places.size
    for block in range(0, steps, 64):
        last = min(block + 64, steps)
        for j in range(width):
            place, row = places[j], first + j
            if row < weight.shape[0]:
                for k in range(block, last):
                    panel[k, place] = weight[row, k]
            else:
                for k in range(block, last):
                    panel[k, place] = 0


@njit(parallel=True, cache=True, nogil=True)
def _fill_all(panels: Any, weight: Any, places: Any) -> None:  # pragma: no cover
    for p in nb.prange(panels.shape[0]):
        _fill(panels[p], weight, places, np.intp(p) * places.size)


@njit(parallel=True, cache=True, nogil=True)
def _widen(out: Any, x: Any) -> None:  # pragma: no cover
    for i in nb.prange(x.shape[0]):
        for k in range(x.shape[1]):
            out[i, k] = nb.uint32(x[i, k]) << nb.uint32(16)


def _multiplier(rows: Any, tile: Tile) -> tuple[Any, Any]:
    """Compile one thread's share of a product, from packed panels and from plain weights."""
    most, width = tile.rows, tile.width

    @inner()
    def blocks(out, x, panel, start, p, first, last, steps):  # type: ignore[no-untyped-def]
        """Multiply panel ``p`` by rows ``first`` to ``last``, in even shares: two rows alone leave units idle."""
        size, outputs = out.itemsize, out.shape[1]
        own = min(width, outputs - p * width)
        spare = np.empty((most if own < width else 0, width), out.dtype)
        following = panel.ctypes.data + panel.size * panel.itemsize
        reach = max(1, panel.size * panel.itemsize // (64 * steps))
        count, done = (last - first + most - 1) // most, first
        for block in range(count):
            rows_now = (last - done) // (count - block)
            target, stride = out.ctypes.data + size * (outputs * done + width * p), size * outputs
            if own < width:
                target, stride = spare.ctypes.data, size * width
            source, x_stride = x.ctypes.data + x.strides[0] * done, x.strides[0]
            ahead = following + 64 * steps * min(block, reach - 1)
            rows(
                rows_now,
                out,
                target,
                stride,
                source,
                x_stride,
                panel.ctypes.data,
                start.ctypes.data + 4 * width * p,
                steps,
                ahead,
            )
            if own < width:
                for i in range(rows_now):
                    for j in range(own):
                        out[done + i, width * p + j] = spare[i, j]
            done += rows_now

    @inner()
    def from_panels(out, x, panels, start, share, shares):  # type: ignore[no-untyped-def]
        count, steps = panels.shape[0], panels.shape[1]
        groups = (out.shape[0] + GROUP - 1) // GROUP
        first = 0
        for group in range(groups):
            last = first + (out.shape[0] - first) // (groups - group)
            for p in range(count * share // shares, count * (share + 1) // shares):
                blocks(out, x, panels[p], start, p, first, last, steps)
            first = last

    @inner()
    def from_plain(out, x, weight, places, start, share, shares):  # type: ignore[no-untyped-def]
        count = start.size // width
        panel = np.empty((weight.shape[1], width), weight.dtype)
        for p in range(count * share // shares, count * (share + 1) // shares):
            _fill(panel, weight, places, p * width)
            blocks(out, x, panel, start, p, 0, out.shape[0], weight.shape[1])

    return from_panels, from_plain


_fma_share, _fma_plain_share = _multiplier(tiles_of(FusedMultiplyAdd, FMA), FMA)
_dot_share, _dot_plain_share = _multiplier(tiles_of(PairDot, DOT), DOT)


@njit(parallel=True, cache=True, nogil=True)
def _fma(out: Any, x: Any, panels: Any, start: Any, shares: Any) -> None:  # pragma: no cover
    for share in nb.prange(shares):
        _fma_share(out, x, panels, start, np.intp(share), shares)


@njit(parallel=True, cache=True, nogil=True)
def _fma_plain(out: Any, x: Any, weight: Any, places: Any, start: Any, shares: Any) -> None:  # pragma: no cover
    for share in nb.prange(shares):
        _fma_plain_share(out, x, weight, places, start, np.intp(share), shares)


@njit(parallel=True, cache=True, nogil=True)
def _dot(out: Any, x: Any, panels: Any, start: Any, shares: Any) -> None:  # pragma: no cover
    for share in nb.prange(shares):
        _dot_share(out, x, panels, start, np.intp(share), shares)


@njit(parallel=True, cache=True, nogil=True)
def _dot_plain(out: Any, x: Any, weight: Any, places: Any, start: Any, shares: Any) -> None:  # pragma: no cover
    for share in nb.prange(shares):
        _dot_plain_share(out, x, weight, places, start, np.intp(share), shares)


def product(out: Any, x: Any, panels: Any, start: Any, shares: Any) -> None:
    """Run `multiply` from panels, for compiled code: their type selects the kind; x must have as many inputs."""
    raise NotImplementedError("compiled code only")


@overload(product)
def _product(out: Any, x: Any, panels: Any, start: Any, shares: Any) -> Any:
    if panels.dtype == types.uint32:

        def pairs(out: Any, x: Any, panels: Any, start: Any, shares: Any) -> None:
            _dot(out, x.view(np.uint32), panels, start, shares)

        return pairs
    if panels.dtype == types.uint16:

        def narrow(out: Any, x: Any, panels: Any, start: Any, shares: Any) -> None:
            wide = np.empty(x.shape, np.uint32)
            _widen(wide, x)
            _fma(out, wide, panels, start, shares)

        return narrow

    def single(out: Any, x: Any, panels: Any, start: Any, shares: Any) -> None:
        _fma(out, x, panels, start, shares)

    return single


_FROM_PANELS: dict[ProductKind, Callable[..., None]] = {"fma32": _fma, "bf16dot": _dot}
_FROM_PLAIN: dict[ProductKind, Callable[..., None]] = {"fma32": _fma_plain, "bf16dot": _dot_plain}


def pack(weight: Array, kind: ProductKind) -> Array:
    """Pack a weight (outputs, inputs), float32 or the bits of bfloat16, into panels (count, steps, width)."""
    steps = _steps(weight, kind)
    tile = tile_of(kind)
    panels = np.empty((-(-steps.shape[0] // tile.width), steps.shape[1], tile.width), steps.dtype)
    _fill_all(panels, steps, _places(kind, weight.dtype == np.uint16))
    return panels


def multiply(out: Array, x: Array, weight: Array, start: Array, *, kind: ProductKind) -> None:
    """Write out = start + x·Wᵀ, summed in float32 over ascending inputs and rounded once.

    Shapes: out (rows, outputs), x (rows, inputs), both C contiguous, in float32 or the bits of bfloat16 like the
    weight; ``weight`` is the panels of `pack`, or plain (outputs, inputs), which is then packed panel by panel on the
    fly; ``start`` is float32, the bias, from `starts`.  Raises ValueError for other shapes.
    """
    tile = tile_of(kind)
    panels = -(-out.shape[1] // tile.width)
    plain = weight.ndim == 2
    inputs = weight.shape[1] if plain else weight.shape[1] * (2 if kind == "bf16dot" else 1)
    rows = out.shape[0] == x.shape[0] and weight.shape[0] == (out.shape[1] if plain else panels)
    if not rows or start.size != panels * tile.width or not x.shape[1] <= inputs <= x.shape[1] + 1:
        raise ValueError(f"out {out.shape}, x {x.shape}, weight {weight.shape}, {start.size} start values")
    if plain:
        places = _places(kind, weight.dtype == np.uint16)
        _FROM_PLAIN[kind](out, _inputs(x, kind), _steps(weight, kind), places, start, nb.get_num_threads())
    else:
        _FROM_PANELS[kind](out, _inputs(x, kind), weight, start, nb.get_num_threads())


def starts(bias: Array | None, outputs: int, kind: ProductKind) -> Array:
    """Return the start values of the sums of ``outputs``, float32 with the width of all panels: the bias, or 0."""
    width = tile_of(kind).width
    start = np.zeros(-(-outputs // width) * width, np.float32)
    if bias is not None:
        start[:outputs] = bias
    return start


def _steps(x: Array, kind: ProductKind) -> Array:
    """View rows in the units of one step of a product: one input, or a pair of bfloat16 in 32 bits."""
    if kind != "bf16dot":
        return x
    if x.shape[1] % 2:
        x = np.concatenate([x, np.zeros((x.shape[0], 1), x.dtype)], 1)
    return np.ascontiguousarray(x).view(np.uint32)


def _inputs(x: Array, kind: ProductKind) -> Array:
    """Convert inputs to the form that a product reads: pairs of bfloat16, or float32."""
    if kind == "bf16dot" or x.dtype == np.float32:
        return _steps(x, kind)
    wide = np.empty(x.shape, np.uint32)
    _widen(wide, x)
    return wide


def _places(kind: ProductKind, narrow: bool) -> Array:
    """Return the position of each output of a panel within a step."""
    tile = tile_of(kind)
    if kind == "bf16dot" or not narrow:
        return np.arange(tile.width)
    order, pair = np.array(unpack_order(tile.lanes)), 2 * tile.lanes
    return np.concatenate([order + first for first in range(0, tile.width, pair)])
