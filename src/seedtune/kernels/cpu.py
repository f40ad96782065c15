"""CPU kernels: the bits of the references in `seedtune.noise` and `seedtune.fingerprint`, at memory speed.

Contracts of every function here: float32 arithmetic with each product and each sum rounded on its own (no
fastmath, so no fused multiply-add), the same order of additions for any number of threads, and no Python lock
held while computing. Arrays are C contiguous.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune import fingerprint as reference
from seedtune.kernels import _compiled as compiled
from seedtune.noise import ELEMENT_LIMIT, Address, quantiles

Float32 = NDArray[np.float32]
UInt32 = NDArray[np.uint32]

# A parallel launch costs 10 to 20 microseconds, in which one core draws about 30,000 normals.
PARALLEL_FROM = 1 << 17

# Two thread pools at once would fight for the same cores, and numba's fallback threading layer forbids it.
_launch = threading.Lock()

Where = tuple[int, int, int, int, int]
"""(k0, k1, stream tag, pair, generation) of an address, as the compiled code takes it."""


def fill_normals(out: Float32, address: Address, start: int = 0) -> None:
    """Write the standard normals of elements ``start .. start + n - 1`` into ``out`` (float32 [n]).

    Same bits as `seedtune.noise.normals`. Raises ValueError for a wrong array or elements outside [0, 2**59).
    """
    _require("out", out, np.float32, 1)
    _require_elements(start, out.size)
    _run(compiled.fill, compiled.fill_parallel, out.size, out, quantiles(), _where(address), start)


def fill_slice(
    out: Float32, address: Address, shape: tuple[int, int], *, row_start: int = 0, col_start: int = 0
) -> None:
    """Write the standard normals of a slice of a 2-d tensor of this ``shape`` into ``out`` (float32 2-d).

    Same bits as `seedtune.noise.normals_slice`. Raises ValueError when the slice does not lie inside the
    shape.
    """
    _require("out", out, np.float32, 2)
    _require_slice(out.shape, shape, row_start, col_start)
    if out.shape[1] == shape[1]:
        fill_normals(out.reshape(-1), address, row_start * shape[1])
        return
    arguments = (out, quantiles(), _where(address), shape[1], row_start, col_start)
    _run(compiled.fill_rows, compiled.fill_rows_parallel, out.size, *arguments)


def fill_factors(
    out: Float32, key: tuple[int, int], stream: int, generations: UInt32, pairs: UInt32, *, start: int = 0
) -> None:
    """Write one factor of one tensor for many pairs into ``out`` (float32 [P, rows * rank]).

    ``out[p]`` belongs to generation ``generations[p]`` and pair ``pairs[p]`` (uint32 [P]). ``stream`` is
    FACTOR_A or FACTOR_B (any stream works), ``start`` the first element, ``row * rank`` for a slice of rows.
    Same bits as `seedtune.noise.factors`. Raises ValueError for wrong arrays.
    """
    _require("out", out, np.float32, 2)
    _require_pairs(out.shape[0], generations, pairs)
    _require_elements(start, out.shape[1])
    where = _where(Address(key, stream))
    _run(
        compiled.fill_factors,
        compiled.fill_factors_parallel,
        out.size,
        out,
        quantiles(),
        where,
        generations,
        pairs,
        start,
    )


def perturb(out: Float32, centre: Float32, sigma: float, address: Address, start: int = 0) -> None:
    """``out = centre + float32(sigma) * noise`` for elements ``start ..`` (float32 [n] both).

    Raises ValueError for wrong arrays or elements outside [0, 2**59).
    """
    _require("out", out, np.float32, 1)
    _require("centre", centre, np.float32, 1)
    if out.size != centre.size:
        raise ValueError(f"out has {out.size} elements but centre has {centre.size}; give arrays of one size")
    _require_elements(start, out.size)
    arguments = (out, centre, np.float32(sigma), quantiles(), _where(address), start)
    _run(compiled.perturb, compiled.perturb_parallel, out.size, *arguments)


def add_lowrank(theta: Float32, a: Float32, b: Float32, weights: Float32) -> None:
    """``theta[i, j] += sum over p, then k, of (weights[p] * a[p, i, k]) * b[p, j, k]``, in that order.

    theta float32 [m, n], a [P, m, r], b [P, n, r], weights [P]. The sum starts at 0 and is added to theta
    once, so the result does not depend on threads or on how rows or columns are sharded. Raises ValueError
    when the shapes do not fit.
    """
    for name, array, ndim in (("theta", theta, 2), ("a", a, 3), ("b", b, 3), ("weights", weights, 1)):
        _require(name, array, np.float32, ndim)
    (m, n), (pairs, _, rank) = theta.shape, a.shape
    if a.shape[1] != m or b.shape != (pairs, n, rank) or weights.size != pairs:
        raise ValueError(
            f"theta {theta.shape}, a {a.shape}, b {b.shape} and weights {weights.shape} do not fit: "
            "they must be (m, n), (P, m, r), (P, n, r) and (P,)"
        )
    # Columns must be contiguous for each (p, k); with rank 1 they already are and nothing is copied.
    columns = np.ascontiguousarray(b.transpose(0, 2, 1)).reshape(pairs * rank, n)
    _run(
        compiled.add_lowrank,
        compiled.add_lowrank_parallel,
        theta.size * max(1, pairs * rank),
        theta,
        a,
        columns,
        weights,
    )


def add_full(
    theta: Float32,
    key: tuple[int, int],
    generations: UInt32,
    pairs: UInt32,
    weights: Float32,
    *,
    start: int = 0,
) -> None:
    """``theta += sum over p of weights[p] * noise_p`` in place, the sum in float32 from 0 in the order of p.

    theta float32 [n] holds elements ``start ..`` of the tensor with this ``key``; noise_p is the full-rank
    noise of (generations[p], pairs[p]). Raises ValueError for wrong arrays.
    """
    _require("theta", theta, np.float32, 1)
    _require("weights", weights, np.float32, 1)
    _require_pairs(weights.size, generations, pairs)
    _require_elements(start, theta.size)
    arguments = (theta, quantiles(), _where(Address(key)), generations, pairs, weights, start)
    _run(compiled.add_full, compiled.add_full_parallel, theta.size * max(1, weights.size), *arguments)


def fingerprint(bits: NDArray[Any], key: tuple[int, int], start: int = 0) -> reference.Fingerprint:
    """Sum of mixed elements, see `seedtune.fingerprint.mix_sum` (same bits): two integers in [0, 2**64).

    ``bits`` is the uint16 or uint32 view [n] of the elements, ``key`` comes from
    `seedtune.fingerprint.tensor_key`, ``start`` is the absolute index of the first element. Parts of a tensor
    add up, see `seedtune.fingerprint.combine`.
    """
    _require_bits(bits, 1)
    _require_elements(start, bits.size)
    return _fingerprint(bits.reshape(1, -1), key, start, bits.size)


def fingerprint_slice(
    bits: NDArray[Any],
    key: tuple[int, int],
    shape: tuple[int, int],
    *,
    row_start: int = 0,
    col_start: int = 0,
) -> reference.Fingerprint:
    """What a slice (2-d, uint16 or uint32) adds to the fingerprint of a 2-d tensor of this ``shape``."""
    _require_bits(bits, 2)
    _require_slice(bits.shape, shape, row_start, col_start)
    return _fingerprint(bits, key, row_start * shape[1] + col_start, shape[1])


# ---------------------------------------------------------------------------------------------- calling


def _run(serial: Callable[..., Any], parallel: Callable[..., Any], work: int, *arguments: Any) -> None:
    """Call the serial kernel for little work and the parallel one, alone on the thread pool, for much."""
    if work < PARALLEL_FROM:
        serial(*arguments)
        return
    with _launch:
        parallel(*arguments)


def _fingerprint(bits: NDArray[Any], key: tuple[int, int], start: int, stride: int) -> reference.Fingerprint:
    pieces = -(-bits.shape[1] // compiled.PIECE)
    sums = np.zeros((bits.shape[0] * pieces, 2), np.uint64)
    _run(
        compiled.mix,
        compiled.mix_parallel,
        bits.size,
        sums,
        bits,
        np.uint64(key[0]),
        np.uint64(key[1]),
        start,
        stride,
    )
    lane0, lane1 = sums.sum(axis=0, dtype=np.uint64)
    return int(lane0), int(lane1)


def _where(address: Address) -> Where:
    k0, k1 = address.key
    return int(k0), int(k1), int(address.stream) << 24, int(address.pair), int(address.generation)


def _require(name: str, array: NDArray[Any], dtype: type[np.generic], ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim or not array.flags.c_contiguous:
        layout = "contiguous" if array.flags.c_contiguous else "strided"
        raise ValueError(
            f"{name} is a {layout} {array.ndim}-d array of {array.dtype}; "
            f"it must be a C-contiguous {ndim}-d array of {np.dtype(dtype)}"
        )


def _require_bits(bits: NDArray[Any], ndim: int) -> None:
    _require("bits", bits, np.uint16 if bits.dtype == np.uint16 else np.uint32, ndim)


def _require_pairs(count: int, generations: UInt32, pairs: UInt32) -> None:
    _require("generations", generations, np.uint32, 1)
    _require("pairs", pairs, np.uint32, 1)
    if generations.size != count or pairs.size != count:
        raise ValueError(f"{count} pairs need as many generations and pairs, got {generations.size} and {pairs.size}")


def _require_elements(start: int, count: int) -> None:
    if start < 0 or start + count > ELEMENT_LIMIT:
        raise ValueError(f"element range starts at {start} with {count} items, but it must lie in [0, {ELEMENT_LIMIT})")


def _require_slice(part: tuple[int, ...], shape: tuple[int, int], row_start: int, col_start: int) -> None:
    fits = 0 <= row_start <= shape[0] - part[0] and 0 <= col_start <= shape[1] - part[1]
    if not fits:
        raise ValueError(f"a slice of shape {part} at ({row_start}, {col_start}) does not lie inside {shape}")
    _require_elements(0, shape[0] * shape[1])
