"""Generate examples from addressed noise: equal on every machine, with disjoint splits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar

from seedtune.errors import ConfigError
from seedtune.numerics import noise
from seedtune.tasks.base import Sizes
from seedtune.tasks.data.rows import TrainTestSplit, examples

T = TypeVar("T")
DataRow = dict[str, Any]
WIDTH, BLOCK = 128, 256
"""Random numbers available to one example, and examples whose numbers are drawn at once."""
MAX_CANDIDATES = 5000
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


Make = Callable[[Draws], DataRow | None]
"""Makes a row from random numbers; None rejects the candidate."""

Identity = Callable[[DataRow], Hashable]
"""Returns equal values for rows that ask the same."""


def splits(name: str, sizes: Sizes, make: Make, identity: Identity) -> TrainTestSplit:
    """Generate distinct training and test examples; the test examples depend only on the seed and their number.

    Raises ConfigError if there are too few different examples.
    """
    seen: set[Hashable] = set()

    def rows(split: str, count: int) -> list[DataRow]:
        source = candidates(sizes.seed, f"{name} {split}")
        return [_new(make, identity, source, seen) for _ in range(count)]

    test = examples(rows("test", sizes.test_size), "test")
    return examples(rows("train", sizes.train_size), "train"), test


def _new(make: Make, identity: Identity, source: Iterator[Draws], seen: set[Hashable]) -> DataRow:
    """Return the next row whose identity is not in ``seen``, and add it; raise ConfigError after many candidates."""
    for draws in itertools.islice(source, MAX_CANDIDATES):
        row = make(draws)
        if row is not None and identity(row) not in seen:
            seen.add(identity(row))
            return row
    raise ConfigError(
        f"with these task_args there are only about {len(seen)} different examples, fewer than train_size + "
        "test_size. Ask for fewer, or for larger puzzles."
    )
