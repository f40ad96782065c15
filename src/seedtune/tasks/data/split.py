"""Hold out a part of the training rows if there is no separate evaluation data."""

from __future__ import annotations

from seedtune.numerics import noise
from seedtune.types import Example

MOST = 128
"""Most held-out rows: an evaluation should not take longer than the training."""

_KEY = noise.key_for(0, noise.Purpose.HELD_OUT)

TrainTestSplit = tuple[tuple[Example, ...], tuple[Example, ...]]


def hold_out(rows: tuple[Example, ...], share: float) -> TrainTestSplit:
    """Split rows into (train, held out), with min(⌊share·rows⌋, 128) held out; both keep order and row numbers.

    The held-out rows follow a fixed permutation that depends on no setting, so that runs with different seeds stay
    comparable.
    """
    count = min(int(share * len(rows)), MOST)
    if not count:
        return rows, ()
    chosen = set(noise.permutation(noise.Address(_KEY, noise.Stream.ORDER), len(rows))[:count].tolist())
    train = tuple(row for place, row in enumerate(rows) if place not in chosen)
    return train, tuple(rows[place] for place in sorted(chosen))
