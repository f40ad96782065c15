"""Estimators from n samples of a prompt for k of them, and intervals of means over prompts.  Pure arithmetic on counts.

Each estimator is a mean over all subsets of k of the n samples, so it is unbiased, and exact for k = n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seedtune.numerics import noise

Floats = NDArray[np.float64]

RESAMPLES = 1000
"""Bootstrap resamples of the prompts."""

COVERAGE = 0.95
"""Nominal coverage of an interval."""

_CHUNK = 1 << 20
"""Draws per batch: bounds the memory of a bootstrap."""


class _Voter(NamedTuple):
    """A distinct answer: the number of samples that gave it, and their mean value."""

    samples: int
    value: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over prompts with its 95 % interval; None where unknown (an interval needs two prompts)."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self, number: Callable[[float], str] = "{:.4g}".format) -> str:
        """Format the mean and its interval as ``MEAN [LOW, HIGH]``, an unknown mean as a dash."""
        if self.value is None:
            return "–"
        if self.low is None or self.high is None:
            return number(self.value)
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that one of k samples is right, if ``right`` of ``samples`` are: 1 − C(n−c, k)/C(n, k).

    Computed as the product Π (1 − k/i) over i = n−c+1 … n, which neither overflows nor cancels (arXiv 2107.03374).
    Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.
    """
    _check(samples, k)
    if not 0 <= right <= samples:
        raise ValueError(f"right={right} of samples={samples}: give a number from 0 to {samples}")
    if samples - right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - right + 1, samples + 1))


def majority_at_k(answers: Sequence[str], values: Sequence[float], k: int) -> float:
    """Expected value of the most frequent answer among k of the n samples (self-consistency, arXiv 2203.11171).

    The mean over all C(n, k) subsets; tied answers share the vote, as if one of them were drawn at random.  An answer's
    value is the mean of its samples' ``values`` (1 for right and 0 for wrong give maj@k), without NaN, and 0 if all are
    NaN.  An empty answer is no vote; a subset of only empty answers has the value 0.  Raises ValueError unless 1 ≤ k
    ≤ n.
    """
    _check(len(answers), k)
    groups: dict[str, list[float]] = {}
    for answer, value in zip(answers, values, strict=True):
        groups.setdefault(answer, []).append(value)
    silent = len(groups.pop("", []))
    voters = [_Voter(len(members), _known_mean(members)) for members in groups.values()]
    most = min(k, max((voter.samples for voter in voters), default=0))
    return math.fsum(_won_with(voters, silent, votes, k) for votes in range(1, most + 1))


def _known_mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else 0.0


def _won_with(voters: Sequence[_Voter], silent: int, votes: int, k: int) -> float:
    """Expected value over k-subsets, 0 for those whose most frequent answer has not exactly this many ``votes``.

    Tables over (samples drawn, answers that have exactly ``votes``) hold the probability that no answer so far has
    more, and that probability times the sum of the winners' values.  Answers are added one at a time; the number of d
    drawn samples that belong to the next answer is hypergeometric, so nothing overflows.
    """
    tables, seen = np.zeros((2, k + 1, k // votes + 1)), 0
    tables[0, 0, 0] = 1.0
    for count, value in voters:
        grown = np.zeros_like(tables)
        for drawn in range(min(count, votes) + 1):
            part = _dealt(seen, count, drawn, k)[:, None] * tables[:, : k + 1 - drawn]
            if drawn < votes:
                grown[:, drawn:] += part
            else:  # one more winner, of this value
                grown[0, drawn:, 1:] += part[0, :, :-1]
                grown[1, drawn:, 1:] += part[1, :, :-1] + value * part[0, :, :-1]
        tables, seen = grown, seen + count
    shared = tables[1, :, 1:] / np.arange(1, tables.shape[2])
    return math.fsum(_dealt(seen, silent, d, k)[-1] * shared[k - d].sum() for d in range(min(silent, k) + 1))


@lru_cache(maxsize=4096)
def _dealt(seen: int, count: int, drawn: int, k: int) -> Floats:
    """(k + 1 − drawn,): the probability that ``drawn`` of d samples are among the last ``count``, d = drawn … k."""
    ways, total = math.comb(count, drawn), seen + count
    chances = [
        math.comb(seen, d - drawn) * ways / math.comb(total, d) if d <= total else 0.0 for d in range(drawn, k + 1)
    ]
    return np.array(chances)


def _check(samples: int, k: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k={k} of samples={samples}: give a k from 1 to {samples}, or more samples")


def bootstrap(columns: Floats, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Estimate]:
    """Means over prompts of ``columns`` (prompts, measures), ignoring NaN, with 95 % percentile intervals.

    Prompts are resampled with replacement by addressed noise, with the same draws for every measure: equal inputs give
    equal intervals.  The percentiles undercover with few prompts, and identical prompts give an interval of width 0.
    """
    known = ~np.isnan(columns)
    held = known.sum(axis=0, keepdims=True, dtype=np.float64)
    means = _means(np.nan_to_num(columns).sum(axis=0, keepdims=True, dtype=np.float64), held)[0]
    drawn = _resampled(columns, known, seed, resamples)
    tails = (1 - COVERAGE) / 2
    return [_estimate(means[i], drawn[:, i], int(known[:, i].sum()), tails) for i in range(columns.shape[1])]


def _estimate(mean: float, drawn: Floats, known: int, tail: float) -> Estimate:
    if known == 0:
        return Estimate(None)
    if known == 1:
        return Estimate(float(mean))
    low, high = np.nanquantile(drawn, (tail, 1 - tail))
    return Estimate(float(mean), float(low), float(high))


def _resampled(columns: Floats, known: NDArray[np.bool_], seed: int, resamples: int) -> Floats:
    """Return the means of each resample, (resamples, measures)."""
    prompts, made = len(columns), []
    address = noise.Address(noise.key_for(seed, noise.Purpose.BOOTSTRAP), noise.Stream.ORDER)
    size = max(1, _CHUNK // max(1, prompts))
    for first in range(0, resamples if prompts else 0, size):
        rows = min(size, resamples - first)
        picks = noise.uniforms(address, first * prompts, rows * prompts).reshape(rows, prompts)
        places = (picks * prompts).astype(np.intp) + prompts * np.arange(rows)[:, None]
        times = np.bincount(places.ravel(), minlength=rows * prompts).reshape(rows, prompts).astype(np.float64)
        made.append(_means(times @ np.nan_to_num(columns), times @ known.astype(np.float64)))
    return np.concatenate(made) if made else np.zeros((0, columns.shape[1]))


def _means(sums: Floats, counts: Floats) -> Floats:
    means: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return means
