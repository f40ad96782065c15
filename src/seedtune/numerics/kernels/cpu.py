"""CPU kernels: the bits of the references in `seedtune.numerics.noise`, `rounding` and `fingerprint`, at memory speed.

Contracts of every function here: float32 arithmetic with each product and each sum rounded on its own (no
fastmath, so no fused multiply-add), the same order of additions for any number of threads, and no Python lock
held while computing. Arrays are C contiguous; weights are float32, float16 or uint16 (the bits of bfloat16).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.numerics import fingerprint as reference
from seedtune.numerics.kernels import checks, cpu_flipout, cpu_subspaces
from seedtune.numerics.kernels import cpu_compiled as compiled
from seedtune.numerics.kernels.arguments import Place, Tags, UpdatePlan, Where, in_runs
from seedtune.numerics.kernels.checks import (
    require_array,
    require_elements,
    require_shared_noise,
    require_slice,
    require_subspaces,
    require_words,
)
from seedtune.numerics.noise import Address, Stream, amplitude, quantiles, sign_table
from seedtune.types import Update

Array = NDArray[Any]
Float32 = NDArray[np.float32]
UInt32 = NDArray[np.uint32]

# A parallel launch costs 10 to 20 microseconds, in which one core draws about 30,000 normals.
PARALLEL_FROM = 1 << 17

# Two thread pools at once would compete for the same cores, and numba's fallback threading layer forbids it.
_launch = threading.Lock()

FACTORS = 1 << 24
"""Elements of a low-rank factor drawn at a time: 64 MB."""


def fill_normals(out: Float32, address: Address, start: int = 0) -> None:
    """Write the standard normals of elements ``start .. start + n - 1`` into ``out`` (float32 [n]).

    Same bits as `seedtune.numerics.noise.normals`. Raises ValueError for a wrong array or elements outside [0, 2**59).
    """
    require_array("out", out, np.float32, 1)
    require_elements(start, out.size)
    _run(compiled.fill, compiled.fill_parallel, out.size, out, quantiles(), _where(address), start)


def fill_factors(
    out: Float32,
    key: tuple[int, int],
    stream: int,
    generations: UInt32,
    pairs: UInt32,
    *,
    start: int = 0,
    rank: int = 1,
    subspaces: int = 1,
) -> None:
    """Write one factor of one tensor for many pairs into ``out`` (float32 [P, rows * rank]).

    ``out[p]`` belongs to generation ``generations[p]`` and pair ``pairs[p]`` (uint32 [P]). ``stream`` is
    FACTOR_A or FACTOR_B (any stream works), ``start`` the first element, ``row * rank`` for a slice of rows.
    With ``subspaces`` the rows of FACTOR_A outside the pair's subspace are 0; ``rank`` is used only for that.
    Same bits as `seedtune.numerics.noise.factors`. Raises ValueError for wrong arrays.
    """
    _fill(out, quantiles(), Address(key, stream), generations, pairs, start=start)
    require_subspaces(subspaces)
    if subspaces > 1 and stream == Stream.FACTOR_A:
        checks.require_rows(start, out.shape[1], rank)
        where = _where(Address(key, stream))
        cpu_subspaces.keep_rows(out, where, generations, pairs, start // rank, rank, subspaces)


def fill_signs(
    out: Float32, key: tuple[int, int], stream: int, generations: UInt32, pairs: UInt32, *, start: int = 0
) -> None:
    """Write one sign factor of one tensor for many pairs into ``out`` (float32 [P, n]), elements ``start ..``.

    Same bits as `seedtune.numerics.noise.signs`. Raises ValueError for wrong arrays.
    """
    _fill(out, sign_table(), Address(key, stream), generations, pairs, start=start)


def perturb(out: Array, weights: Array, sigma: float, address: Address, start: int = 0, *, subspaces: int = 1) -> None:
    """Write ``out = nearest(weights + float32(sigma) * noise)`` for elements ``start ..`` (1-d arrays of one size).

    Product and sum are float32, each rounded on its own, then rounded once more to the type of ``out``. float32
    ``weights`` can be written as any type, 16-bit ones as their own; ``sigma`` carries the member's sign, and with 0 no
    noise is drawn. ``out`` may be ``weights``. With ``subspaces`` sigma is times sqrt(subspaces), and elements outside
    the pair's subspace are nearest(weights). See `seedtune.numerics.rounding`. Raises ValueError for wrong arrays or
    elements outside [0, 2**59).
    """
    source, goal = _weights("weights", weights, 1), _weights("out", out, 1)
    if source.dtype not in (np.dtype(np.float32), goal.dtype):
        raise ValueError(f"weights of {weights.dtype} cannot go into out of {out.dtype}; give out of the same type")
    if out.size != weights.size:
        raise ValueError(f"out has {out.size} elements but weights have {weights.size}; give arrays of one size")
    require_elements(start, out.size)
    require_subspaces(subspaces)
    scale = np.float32(amplitude(sigma, subspaces=subspaces))
    if scale == 0:
        _run(compiled.convert, compiled.convert_parallel, out.size, goal, source)
        return
    arguments = (goal, source, scale, quantiles(), _where(address), start)
    if subspaces == 1:
        _run(compiled.perturb, compiled.perturb_parallel, out.size, *arguments)
    else:
        _run(cpu_subspaces.perturb, cpu_subspaces.perturb_parallel, out.size, *arguments, subspaces)


def update_gaussian(
    theta: Array,
    key: tuple[int, int],
    updates: Sequence[Update],
    *,
    start: int = 0,
    anchor: Array | None = None,
    subspaces: int = 1,
) -> None:
    """Apply ``updates`` one after the other, in place, to elements ``start ..`` of the tensor with this ``key``.

    For each update, x = theta + (sum of weight * noise over its terms in order, in float32 from 0); its decay, if
    any, pulls x to ``anchor`` (base weights, same shape, any element type, see `Decay`); theta = x, by
    stochastic rounding if theta has 16 bits. Every product and sum is rounded on its own. theta is 1-d, of any
    element type. An update with neither terms nor decay changes nothing. With ``subspaces`` a term adds its weight
    times sqrt(subspaces) times noise, only to the elements of its pair's subspace. Raises ValueError for wrong arrays.
    """
    target, base = _weights("theta", theta, 1), _anchor(theta, anchor, updates)
    require_elements(start, theta.size)
    plan = plan_of(tuple(updates), 1, subspaces)
    work = theta.size * (1 + plan.weights.size) if plan.ends.size else 0
    arguments = (target, base, quantiles(), _tags(key), plan, start)
    if work and subspaces == 1:
        _run(compiled.update_gaussian, compiled.update_gaussian_parallel, work, *arguments)
    elif work:
        _run(cpu_subspaces.update_gaussian, cpu_subspaces.update_gaussian_parallel, work, *arguments, subspaces)


def update_lowrank(
    theta: Array,
    key: tuple[int, int],
    updates: Sequence[Update],
    *,
    rank: int,
    shape: tuple[int, int] | None = None,
    row_start: int = 0,
    col_start: int = 0,
    anchor: Array | None = None,
    subspaces: int = 1,
) -> None:
    """As `update_gaussian` with the noise A B^T / sqrt(rank), for a 2-d slice ``theta`` of a tensor of this ``shape``.

    The sum of an update runs over its terms p and then k < rank: (w_p * A[p, i, k]) * B[p, j, k] in float32, where
    w_p = float32(weight * sqrt(subspaces) / sqrt(rank)), and A[p, i] = 0 outside the pair's subspace. Draws the factors
    itself, at most FACTORS of each at a time (of B: or those of one update). Raises ValueError for wrong arrays.
    """
    target, base = _weights("theta", theta, 2), _anchor(theta, anchor, updates)
    whole = theta.shape if shape is None else shape
    require_slice(theta.shape, whole, row_start, col_start)
    for batch in _batches(updates, theta.shape[1] * rank):
        plan = plan_of(batch, rank, subspaces)
        # Columns must be contiguous for each (p, k); with rank 1 they already are and nothing is copied. The kernel
        # reads sixteen at a time.
        padded = -(-theta.shape[1] // 16) * 16
        right = _factor(key, Stream.FACTOR_B, plan, first=col_start, count=padded, rank=rank)
        columns = np.ascontiguousarray(right.transpose(0, 2, 1)).reshape(-1, padded)
        band = max(1, FACTORS // max(1, plan.weights.size * rank))
        for low in range(0, theta.shape[0], band):
            rows = target[low : low + band]
            first = row_start + low
            left = _factor(key, Stream.FACTOR_A, plan, first=first, count=rows.shape[0], rank=rank, subspaces=subspaces)
            place = Place(first * whole[1] + col_start, whole[1])
            arguments = (rows, base[low : low + band], left, columns, _tags(key), plan, place)
            work = rows.size * (1 + columns.shape[0])
            _run(compiled.update_lowrank, compiled.update_lowrank_parallel, work, *arguments)


def update_flipout(
    theta: Array,
    key: tuple[int, int],
    updates: Sequence[Update],
    *,
    shape: tuple[int, int] | None = None,
    row_start: int = 0,
    col_start: int = 0,
    anchor: Array | None = None,
    shared_noise: int = 1,
) -> None:
    """As `update_lowrank` with the noise of `seedtune.numerics.noise.flipout`; sums as in `kernels.base`.

    Draws the signs itself, at most FACTORS of rows or columns at a time. Raises ValueError for wrong arrays.
    """
    target, base = _weights("theta", theta, 2), _anchor(theta, anchor, updates)
    whole, (rows, columns) = theta.shape if shape is None else shape, theta.shape
    require_slice(theta.shape, whole, row_start, col_start)
    require_shared_noise(shared_noise)
    tags = _tags(key, Stream.SHARED)
    for batch in _batches([in_runs(update, shared_noise) for update in updates], columns):
        plan = plan_of(batch, 1)
        right = _signs(key, Stream.FACTOR_B, plan, first=col_start, count=-(-columns // 16) * 16)
        band = max(1, FACTORS // max(1, plan.weights.size))
        for low in range(0, rows, band):
            part, first = target[low : low + band], row_start + low
            left = _signs(key, Stream.FACTOR_A, plan, first=first, count=part.shape[0])
            place = Place(first * whole[1] + col_start, whole[1])
            arguments = (part, base[low : low + band], quantiles(), left, right, tags, plan, place, shared_noise)
            work = part.size * (1 + plan.weights.size)
            _run(cpu_flipout.update_flipout, cpu_flipout.update_flipout_parallel, work, *arguments)


def fingerprint(bits: NDArray[Any], key: tuple[int, int], start: int = 0) -> reference.Fingerprint:
    """Return the sum of mixed elements, see `seedtune.numerics.fingerprint`: two integers in [0, 2**64).

    ``bits`` is the uint16 or uint32 view [n] of the elements, ``key`` comes from
    `seedtune.numerics.fingerprint.tensor_key`, ``start`` is the absolute index of the first element. Parts of a tensor
    add up, see `seedtune.numerics.fingerprint.combine`.
    """
    _require_bits(bits, 1)
    require_elements(start, bits.size)
    return _fingerprint(bits.reshape(1, -1), key, start, bits.size)


def fingerprint_slice(
    bits: NDArray[Any],
    key: tuple[int, int],
    shape: tuple[int, int],
    *,
    row_start: int = 0,
    col_start: int = 0,
) -> reference.Fingerprint:
    """Return the share of a slice (2-d, uint16 or uint32) in the fingerprint of a 2-d tensor of this ``shape``."""
    _require_bits(bits, 2)
    require_slice(bits.shape, shape, row_start, col_start)
    return _fingerprint(bits, key, row_start * shape[1] + col_start, shape[1])


# ---------------------------------------------------------------------------------------------- calling


def _run(serial: Callable[..., Any], parallel: Callable[..., Any], work: int, *arguments: Any) -> None:
    """Call the serial kernel for little work and the parallel one, alone on the thread pool, for much."""
    if work < PARALLEL_FROM:
        serial(*arguments)
        return
    with _launch:
        parallel(*arguments)


def _fill(out: Float32, table: Float32, address: Address, generations: UInt32, pairs: UInt32, *, start: int) -> None:
    """Write the table's numbers for the key and stream of ``address`` into ``out`` [P, n], a row for every pair."""
    require_array("out", out, np.float32, 2)
    _require_pairs(out.shape[0], generations, pairs)
    require_elements(start, out.shape[1])
    arguments = (out, table, _where(address), generations, pairs, start)
    _run(compiled.fill_factors, compiled.fill_factors_parallel, out.size, *arguments)


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


@lru_cache(maxsize=8)
def plan_of(updates: tuple[Update, ...], rank: int, subspaces: int = 1) -> UpdatePlan:
    """Convert updates to the form of compiled code, without those that change nothing.

    A decay is (1, 1 - l2, l1) in float32, or zeros if there is none. Raises ValueError for a generation or pair
    outside [0, 2**32).
    """
    require_subspaces(subspaces)
    active = [update for update in updates if _moves(update)]
    terms = [term for update in active for term in update.terms]
    decays = np.zeros((len(active), 3), np.float32)
    for row, update in zip(decays, active, strict=True):
        if update.decay is not None:
            row[:] = 1, np.float32(1) - np.float32(update.decay.l2), update.decay.l1
    return UpdatePlan(
        require_words("generation", [term.generation for term in terms]),
        require_words("pair", [term.pair for term in terms]),
        np.array([amplitude(term.weight, rank=rank, subspaces=subspaces) for term in terms], np.float32),
        np.cumsum([len(update.terms) for update in active], dtype=np.int64),
        require_words("generation", [update.generation for update in active]),
        decays,
    )


def _moves(update: Update) -> bool:
    return bool(update.terms) or update.decay is not None


def _batches(updates: Sequence[Update], columns: int) -> Iterator[tuple[Update, ...]]:
    """Yield runs of effective updates whose factors B together are at most FACTORS elements."""
    batch: list[Update] = []
    for update in updates:
        if not _moves(update):
            continue
        terms = sum(len(earlier.terms) for earlier in batch) + len(update.terms)
        if batch and terms * columns > FACTORS:
            yield tuple(batch)
            batch = []
        batch.append(update)
    if batch:
        yield tuple(batch)


def _factor(
    key: tuple[int, int], stream: Stream, plan: UpdatePlan, *, first: int, count: int, rank: int, subspaces: int = 1
) -> Float32:
    """Return ``count`` rows of one factor, for all terms of a plan: float32 [P, count, rank]."""
    out = np.empty((plan.pairs.size, count * rank), np.float32)
    fill_factors(out, key, stream, plan.generations, plan.pairs, start=first * rank, rank=rank, subspaces=subspaces)
    return out.reshape(plan.pairs.size, count, rank)


def _signs(key: tuple[int, int], stream: Stream, plan: UpdatePlan, *, first: int, count: int) -> Float32:
    """Return ``count`` elements of one sign factor, for all terms of a plan: float32 [P, count]."""
    out = np.empty((plan.pairs.size, count), np.float32)
    fill_signs(out, key, stream, plan.generations, plan.pairs, start=first)
    return out


def _tags(key: tuple[int, int], stream: Stream = Stream.GAUSSIAN) -> Tags:
    k0, k1, noise, _, _ = _where(Address(key, stream))
    return Tags(k0, k1, noise, int(Stream.ROUNDING) << 24)


def _where(address: Address) -> Where:
    k0, k1 = address.key
    return Where(int(k0), int(k1), int(address.stream) << 24, int(address.pair), int(address.generation))


def _weights(name: str, array: Array, ndim: int) -> Array:
    """Return weights in the form of compiled code: float32, bfloat16 as uint16, float16 as int16."""
    known = array.dtype in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.uint16))
    require_array(name, array, array.dtype.type if known else np.float32, ndim)
    return array.view(np.int16) if array.dtype == np.float16 else array


def _anchor(theta: Array, anchor: Array | None, updates: Sequence[Update]) -> Array:
    """Return the anchor in the form of compiled code; theta, which is then not read, if no update needs an anchor."""
    if all(update.decay is None for update in updates):
        return _weights("theta", theta, theta.ndim)
    if anchor is None or anchor.shape != theta.shape:
        found = "none" if anchor is None else f"one of shape {anchor.shape}"
        raise ValueError(f"a decay needs an anchor of the shape of theta, {theta.shape}, and was given {found}")
    return _weights("anchor", anchor, theta.ndim)


def _require_bits(bits: NDArray[Any], ndim: int) -> None:
    require_array("bits", bits, np.uint16 if bits.dtype == np.uint16 else np.uint32, ndim)


def _require_pairs(count: int, generations: UInt32, pairs: UInt32) -> None:
    require_array("generations", generations, np.uint32, 1)
    require_array("pairs", pairs, np.uint32, 1)
    if generations.size != count or pairs.size != count:
        raise ValueError(f"{count} pairs need as many generations and pairs, got {generations.size} and {pairs.size}")


def empty(shape: tuple[int, ...], like: Any) -> Float32:
    """Return a new float32 array."""
    return np.empty(shape, np.float32)


def host(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array itself: it is in host memory already."""
    return array


def copy(target: NDArray[Any], source: NDArray[Any]) -> None:
    """Write ``source`` over ``target``."""
    target[...] = source
