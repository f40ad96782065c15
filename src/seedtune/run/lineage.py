"""Which generations made the current weights what they are: all of them, but for those that a collapse went back on."""

from __future__ import annotations

from collections.abc import Iterable

from seedtune.run.ledger import Record
from seedtune.strategies.base import update_of
from seedtune.types import Update


class Lineage:
    """A run's records as a tree: each generation grows from the one before it, or from the one it went back to.

    "After g" means: when the first g generations were done, whatever they did.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records = list(records)
        self._updates = [_update(record) for record in self.records]

    def add(self, record: Record) -> None:
        """One more generation."""
        self.records.append(record)
        self._updates.append(_update(record))

    def path(self, after: int) -> list[int]:
        """The generations whose updates are in the weights after ``after``, in order."""
        steps = []
        while after := self._node(after):
            after -= 1
            steps.append(after)
        return steps[::-1]

    def reaches(self, after: int, goal: int) -> bool:
        """Whether the weights after ``after`` are ones that the weights after ``goal`` came by."""
        node = self._node(after)
        return node == 0 or node - 1 in set(self.path(goal))

    def ends(self, goal: int) -> list[int]:
        """Where its branches end, up to ``goal``, which comes last: every generation lies on the way to one."""
        left = [record.plan.generation for record in self.records[:goal] if record.rollback_to is not None]
        return [*left, goal]

    def updates(self, goal: int) -> list[Update]:
        """One update for each of the first ``goal`` generations; empty for those that are not in the weights."""
        made = [Update(generation, ()) for generation in range(goal)]
        for generation in self.path(goal):
            made[generation] = self._updates[generation]
        return made

    def last(self) -> Update:
        """What the newest generation does to the current weights."""
        return self._updates[self.path(len(self.records))[-1]]

    def latest(self, count: int) -> list[Update]:
        """The last updates that made the weights what they are, ``count`` of them if there are so many, in order."""
        moved = [self._updates[generation] for generation in self.path(len(self.records))]
        return [update for update in moved if update.terms][-count:]

    def _node(self, after: int) -> int:
        """A generation that went back is the one it went back to."""
        while after and (to := self.records[after - 1].rollback_to) is not None:
            after = to
        return after


def _update(record: Record) -> Update:
    """What a generation's members and coefficients make."""
    return update_of(record.plan, record.coefficients, record.alpha, record.decay)
