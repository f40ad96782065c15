"""Attention over the slots of a key-value cache, of a decode step or of whole prompts, on the CPU.

Keys are stored transposed (slots, heads, dim, time), so that scores are sums over contiguous time and values
(slots, heads, time, dim) are sums over contiguous dim: both loops vectorise and read the cache once.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numpy.typing import NDArray

from seedtune.engines.transformers.cpu_kernels.bfloat16 import load, store
from seedtune.engines.transformers.cpu_kernels.exponential import exp
from seedtune.engines.transformers.cpu_kernels.reductions import top_in_lanes, total_in_lanes
from seedtune.numerics.machine.caching import inner, njit
from seedtune.numerics.machine.vectors import WIDE, WIDTH, sum_heads_1, sum_heads_wide

Array = NDArray[Any]

_WIDE = WIDE * WIDTH


class AttentionOptions(NamedTuple):
    """Scale of the scores; window of latest positions and softcap of the scores, 0 for none."""

    scaling: float
    window: int
    softcap: float


class FilledCache(NamedTuple):
    """Keys (slots, kv_heads, dim, time), values (slots, kv_heads, time, dim), and the filled length of each slot."""

    keys: Array
    values: Array
    lengths: Array


class Prompts(NamedTuple):
    """Prompts of a prefill pass, which fill the slots from ``first_slot`` on."""

    first_slot: int
    tokens: Array
    """The index in the pass of each prompt's tokens by position, all prompts concatenated."""
    ends: Array
    """(prompts,) the end of each prompt in ``tokens``."""
    starts: Array
    """(prompts,) each prompt's first own position; those before belong to another prompt of the same beginning."""


@cache
def _for_heads(sums: tuple[Any, ...]) -> Any:
    """Compile the choice among sums for one, two, three and four heads; once if the wide sums are the narrow ones."""
    one, two, three, four = sums

    @inner()
    def chosen(heads, like, out, out_step, rows, stride, weights, step, count, ahead):  # type: ignore[no-untyped-def]
        if heads == 4:
            four(like, out, out_step, rows, stride, weights, step, count, ahead)
        elif heads == 3:
            three(like, out, out_step, rows, stride, weights, step, count, ahead)
        elif heads == 2:
            two(like, out, out_step, rows, stride, weights, step, count, ahead)
        else:
            one(like, out, out_step, rows, stride, weights, step, count, ahead)

    return chosen


_narrow, _wide = _for_heads(sum_heads_1), _for_heads(sum_heads_wide)
"""Sums of 16 columns, and of WIDE vectors of columns."""


@inner(error_model="numpy")
def _softmax(scores: Any, softcap: Any) -> None:  # pragma: no cover
    one = np.float32(1.0)
    if softcap > 0.0:
        for t in range(scores.size):
            small = exp(np.float32(-2.0) * abs(scores[t] / softcap))
            scores[t] = math.copysign(softcap * (one - small) / (one + small), scores[t])
    top = top_in_lanes(scores, scores.ctypes.data, scores.size)
    for t in range(scores.size):
        scores[t] = exp(scores[t] - top)
    share = one / total_in_lanes(scores, scores.ctypes.data, scores.size)
    for t in range(scores.size):
        scores[t] *= share


@inner()
def _sum_rows(
    heads: Any,
    like: Any,
    out: Any,
    rows: Any,
    stride: Any,
    weights: Any,
    step: Any,
    count: Any,
    width: Any,
    ahead: Any,
) -> None:  # pragma: no cover
    """out[h][0:width] = Σ weights[h][j]·rows[j], many columns at a time, then 16 (width is rounded up to 16)."""
    done = 0
    size, out_step = like.itemsize, 4 * out.shape[1]
    while done < width:
        target, source = out.ctypes.data + 4 * done, rows + size * done
        if width - done > _WIDE - 16:
            _wide(heads, like, target, out_step, source, stride, weights, step, count, ahead)
            done += _WIDE
        else:
            _narrow(heads, like, target, out_step, source, stride, weights, step, count, ahead)
            done += 16


@inner()
def _write(keys: Any, values: Any, k: Any, v: Any, slot: Any, h: Any, now: Any) -> None:  # pragma: no cover
    """Write the key and value of head ``h`` at position ``now`` of a slot."""
    for d in range(k.shape[1]):
        keys[slot, h, d, now] = k[h, d]
    for d in range(v.shape[1]):
        values[slot, h, now, d] = v[h, d]


@inner()
def _attend(
    out: Any, q: Any, keys: Any, values: Any, slot: Any, h: Any, now: Any, options: Any, space: Any, alone: Any
) -> None:  # pragma: no cover
    """Attend with one token's query heads that share key head ``h`` to positions 0 … ``now`` of a slot.

    If ``alone`` (the only token of its slot), prefetch the keys and values of the next head meanwhile.
    """
    window = options.window
    query, scores, total = space
    kv_heads, dim, time = keys.shape[1:]
    value_dim, size = values.shape[3], keys.itemsize
    group = q.shape[0] // kv_heads
    first = max(0, now + 1 - window) if window > 0 else 0
    start = first // 16 * 16
    key_rows = keys.ctypes.data + size * ((slot * kv_heads + h) * dim * time + start)
    value_rows = values.ctypes.data + size * ((slot * kv_heads + h) * time + first) * value_dim
    step, row_step = 4 * time, size * value_dim
    ahead, value_ahead = (size * dim * time, size * time * value_dim) if alone else (0, 0)
    for g in range(h * group, (h + 1) * group, 4):
        heads = min(4, (h + 1) * group - g)
        for s in range(heads):
            for d in range(dim):
                query[s, d] = load(q[g + s, d]) * options.scaling
        _sum_rows(heads, keys, scores, key_rows, size * time, query.ctypes.data, 4 * dim, dim, now + 1 - start, ahead)
        for s in range(heads):
            _softmax(scores[s, first - start : now + 1 - start], options.softcap)
        weights = scores.ctypes.data + 4 * (first - start)
        _sum_rows(heads, values, total, value_rows, row_step, weights, step, now + 1 - first, value_dim, value_ahead)
        for s in range(heads):
            for d in range(value_dim):
                out[g + s, d] = store(out, total[s, d])


@inner()
def _space(keys: Any, values: Any) -> Any:  # pragma: no cover
    """Allocate scratch memory for four queries, their scores and their sums of values."""
    dim, time = keys.shape[2:]
    return np.empty((4, dim), np.float32), np.empty((4, time), np.float32), np.empty((4, values.shape[3]), np.float32)


@njit(parallel=True, cache=True, nogil=True)
def decode_rows(
    out: Any, q: Any, k: Any, v: Any, keys: Any, values: Any, lengths: Any, options: Any, shares: Any
) -> None:  # pragma: no cover
    """Run `decode`; also callable from compiled code."""
    kv_heads = keys.shape[1]
    tasks = q.shape[0] * kv_heads
    for share in nb.prange(shares):
        space = _space(keys, values)
        for task in range(tasks * np.intp(share) // shares, tasks * (np.intp(share) + 1) // shares):
            i, h = task // kv_heads, task % kv_heads
            _write(keys, values, k[i], v[i], i, h, lengths[i])
            _attend(out[i], q[i], keys, values, i, h, lengths[i], options, space, True)


@njit(parallel=True, cache=True, nogil=True)
def _prefill(
    out: Any, q: Any, k: Any, v: Any, keys: Any, values: Any, prompts: Any, options: Any
) -> None:  # pragma: no cover
    kv_heads = keys.shape[1]
    for task in nb.prange(prompts.ends.size * kv_heads):
        p, h = np.intp(task) // kv_heads, np.intp(task) % kv_heads
        space, slot = _space(keys, values), prompts.first_slot + p
        begin = prompts.ends[p - 1] if p > 0 else 0
        for now in range(prompts.ends[p] - begin):
            token = prompts.tokens[begin + now]
            _write(keys, values, k[token], v[token], slot, h, now)
            if now >= prompts.starts[p]:
                _attend(out[token], q[token], keys, values, slot, h, now, options, space, False)


def single(options: AttentionOptions) -> AttentionOptions:
    """Return the options in the precision in which scores are computed."""
    return AttentionOptions(np.float32(options.scaling), options.window, np.float32(options.softcap))  # type: ignore[arg-type]


def decode(
    out: Array,
    q: Array,
    *,
    new: tuple[Array, Array],
    cache: tuple[Array, Array],
    lengths: Array,
    options: AttentionOptions,
) -> None:
    """Write each row's new key and value at ``lengths[i]`` of its slot and attend to everything up to it.

    Shapes: out and q (rows, heads, dim), new (rows, kv_heads, dim) twice, cache keys
    (slots, kv_heads, dim, time) and values (slots, kv_heads, time, dim); row i uses slot i.  A window > 0
    limits attention to that many latest tokens; a softcap > 0 squashes scores by c·tanh(s/c).
    float32, or uint16 views of bfloat16; sums in float32.
    """
    decode_rows(out, q, *new, *cache, lengths, single(options), nb.get_num_threads())


def prefill(
    out: Array,
    q: Array,
    *,
    new: tuple[Array, Array],
    cache: tuple[Array, Array],
    prompts: Prompts,
    options: AttentionOptions,
) -> None:
    """Write every prompt's keys and values into its slot; the prompt's own tokens attend to the slot's content so far.

    Shapes: out and q (tokens, heads, dim), new (tokens, kv_heads, dim) twice; cache and options as in `decode`.
    """
    _prefill(out, q, *new, *cache, prompts, single(options))
