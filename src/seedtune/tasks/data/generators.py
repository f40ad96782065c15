"""Generate examples from addressed noise: equal on every machine, with disjoint splits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

from seedtune.errors import ConfigError
from seedtune.numerics import noise
from seedtune.tasks.base import Sizes

T = TypeVar("T")
DataRow = dict[str, Any]
WIDTH, BLOCK = 128, 256
"""Random numbers available to one example, and examples whose numbers are drawn at once."""
PATIENCE = 5000
"""Consecutive candidates without a new example after which a task counts as exhausted."""


class Draws:
    """The random numbers of one example, in order."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = iter(numbers)

    def below(self, limit: int) -> int:
        """Draw a uniform integer in [0, ``limit``)."""
        return next(self._numbers) % limit

    def between(self, low: int, high: int) -> int:
        """Draw a uniform integer in [``low``, ``high``]."""
        return low + self.below(high - low + 1)

    def choice(self, items: Sequence[T]) -> T:
        """Draw one of the items."""
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Draw ``count`` items without replacement, in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


def candidates(seed: int, name: str) -> Iterator[Draws]:
    """Yield the random numbers of successive candidates, addressed by ``seed`` and ``name``."""
    key = noise.key_for(seed, noise.Purpose.TASK, name)
    for block in itertools.count():
        numbers = noise.integers(noise.Address(key, noise.Stream.ORDER, block), 0, BLOCK * WIDTH)
        yield from (Draws(row) for row in numbers.reshape(BLOCK, WIDTH).tolist())


Make = Callable[[Draws], tuple[Hashable, DataRow] | None]
"""Makes (identity of an example, its row) from random numbers; None rejects the candidate."""


def splits(make: Make, sizes: Sizes, name: str) -> tuple[list[DataRow], list[DataRow]]:
    """Generate distinct training and test rows; the test rows depend only on the seed and their number.

    Raises ConfigError if there are too few different examples.
    """
    seen: set[Hashable] = set()
    test = _rows(make, candidates(sizes.seed, f"{name} test"), sizes.test_size, seen)
    train = _rows(make, candidates(sizes.seed, f"{name} train"), sizes.train_size, seen)
    return train, test


def _rows(make: Make, source: Iterator[Draws], count: int, seen: set[Hashable]) -> list[DataRow]:
    """Generate ``count`` rows that are not in ``seen``, and add them to it."""
    rows: list[DataRow] = []
    idle = 0
    while len(rows) < count:
        made = make(next(source))
        idle += 1
        if made is not None and made[0] not in seen:
            seen.add(made[0])
            rows.append(made[1])
            idle = 0
        if idle == PATIENCE:
            raise ConfigError(
                f"with these task_args there are only about {len(seen)} different examples, fewer than train_size + "
                "test_size. Ask for fewer, or for larger puzzles."
            )
    return rows
