"""Paired differences over seeds: means, 95 % t-intervals, and p-values corrected for the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Paired:
    """The mean of differences, its 95 % t-interval, and the two-sided p-value of no difference."""

    mean: float
    low: float
    high: float
    p: float


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Compare two methods by the differences of equal seeds; needs two."""
    apart = np.asarray(ours) - np.asarray(theirs)
    mean, count = float(apart.mean()), len(apart)
    error = float(apart.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    if not error > 0:
        return Paired(mean, mean, mean, 1.0 if mean == 0 or count < 2 else 0.0)
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return Paired(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean / error), count - 1)))


def holm(values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979): the k-th smallest of m, times m − k + 1, never falling."""
    order, largest = sorted(range(len(values)), key=lambda i: values[i]), 0.0
    made = [0.0] * len(values)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        made[place] = largest
    return made
