"""What the numba kernels take together, as named tuples: compiled code reads their fields like variables."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seedtune.types import Term, Update


class Where(NamedTuple):
    """An address of noise: the two words of its key, its stream's tag, its pair and its generation."""

    k0: Any
    k1: Any
    tag: Any
    pair: Any
    generation: Any


class Tags(NamedTuple):
    """The two words of a tensor's key, and the tags of its noise and of its rounding."""

    k0: Any
    k1: Any
    noise: Any
    rounding: Any


class UpdatePlan(NamedTuple):
    """Generation, pair and weight of every term; of every update the end of its terms, its generation and decay."""

    generations: NDArray[np.uint32]
    pairs: NDArray[np.uint32]
    weights: NDArray[np.float32]
    ends: NDArray[np.int64]
    updated: NDArray[np.uint32]
    decays: NDArray[np.float32]


class Place(NamedTuple):
    """Where a slice lies in a two-dimensional tensor: its first element, and the length of the tensor's rows."""

    first: int
    stride: int


def in_runs(update: Update, shared_noise: int) -> Update:
    """Return the update with the terms of each shared noise in one run, runs in the order of their first terms."""
    runs: dict[tuple[int, int], list[Term]] = {}
    for term in update.terms:
        runs.setdefault((term.generation, term.pair % shared_noise), []).append(term)
    return replace(update, terms=tuple(chain.from_iterable(runs.values())))
