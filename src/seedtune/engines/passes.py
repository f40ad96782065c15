"""How many updates one pass over the weights takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seedtune.types import Update

BATCH_UPDATES, BATCH_TERMS = 16, 1024
"""One pass over the weights takes at most so many updates, and so many noise samples unless one update has more."""


def passes(updates: Sequence[Update]) -> Iterator[Sequence[Update]]:
    """All updates, cut into passes."""
    start = 0
    while start < len(updates):
        batch = first_pass(updates, start, len(updates))
        yield batch
        start += len(batch)


def first_pass(updates: Sequence[Update], start: int, stop: int) -> list[Update]:
    """The updates of one pass, from ``start`` and not beyond ``stop``."""
    batch: list[Update] = []
    terms = 0
    for update in updates[start : min(stop, start + BATCH_UPDATES)]:
        terms += len(update.terms)
        if batch and terms > BATCH_TERMS:
            break
        batch.append(update)
    return batch
