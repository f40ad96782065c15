"""Holding out a part of the training rows where nothing else is there to evaluate on."""

from __future__ import annotations

from seedtune.numerics import noise
from seedtune.types import Example

MOST = 128
"""Rows that are held out at the most: an evaluation should not take longer than the training."""

_KEY = noise.key_for(0, noise.Purpose.HELD_OUT)

TrainTestSplit = tuple[tuple[Example, ...], tuple[Example, ...]]


def hold_out(rows: tuple[Example, ...], share: float) -> TrainTestSplit:
    """(train, held out): ⌊share·rows⌋ of the rows, 128 at the most, are held out; both keep order and numbers.

    Which ones is a permutation by address that no setting enters, so that runs with other seeds stay comparable.
    """
    count = min(int(share * len(rows)), MOST)
    if not count:
        return rows, ()
    chosen = set(noise.permutation(noise.Address(_KEY, noise.Stream.ORDER), len(rows))[:count].tolist())
    train = tuple(row for place, row in enumerate(rows) if place not in chosen)
    return train, tuple(rows[place] for place in sorted(chosen))
