"""The generations whose updates the current weights contain: all but those that a rollback undid."""

from __future__ import annotations

from collections.abc import Iterable

from seedtune.run.records import Record
from seedtune.strategies.base import update_of
from seedtune.types import Update


class Lineage:
    """A run's records as a tree: a generation's parent is the one before it, or the one that a rollback returned to.

    "After g" means after the first g generations, including any that were rolled back.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records: list[Record] = []
        self._updates: list[Update] = []
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Append a generation's record."""
        self.records.append(record)
        self._updates.append(update_of(record.plan, record.coefficients, record.alpha, record.decay))

    def path(self, after: int) -> list[int]:
        """Generations whose updates the weights after ``after`` contain, in order."""
        steps = []
        while after := self._node(after):
            after -= 1
            steps.append(after)
        return steps[::-1]

    def reaches(self, after: int, goal: int) -> bool:
        """Whether the weights after ``after`` are an ancestor of the weights after ``goal``."""
        node = self._node(after)
        return node == 0 or node - 1 in set(self.path(goal))

    def ends(self, goal: int) -> list[int]:
        """Leaves of the tree up to ``goal``, which comes last: every generation is an ancestor of one of them."""
        left = [record.plan.generation for record in self.records[:goal] if record.rollback_to is not None]
        return [*left, goal]

    def updates(self, goal: int) -> list[Update]:
        """One update per generation up to ``goal``; empty for generations that the weights do not contain."""
        made = [Update(generation, ()) for generation in range(goal)]
        for generation in self.path(goal):
            made[generation] = self._updates[generation]
        return made

    def last(self) -> Update:
        """The update of the newest generation."""
        return self._updates[self.path(len(self.records))[-1]]

    def latest(self, count: int) -> list[Update]:
        """The last ``count`` nonempty updates that the weights contain (fewer if there are fewer), in order."""
        moved = [self._updates[generation] for generation in self.path(len(self.records))]
        return [update for update in moved if update.terms][-count:]

    def _node(self, after: int) -> int:
        """Resolve a rollback to the generation it returned to."""
        while after and (to := self.records[after - 1].rollback_to) is not None:
            after = to
        return after
