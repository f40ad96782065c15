"""Which generations made the centre what it is: all of them, but for those that a collapse went back on."""

from __future__ import annotations

from collections.abc import Iterable

from seedtune.numerics.momentum import Memory
from seedtune.run.ledger import Record
from seedtune.strategies.base import update_of
from seedtune.types import Update


class Lineage:
    """A run's records as a tree: each generation grows from the one before it, or from the one it went back to.

    "After g" means: when the first g generations were done, whatever they did.
    """

    def __init__(self, memory: Memory, records: Iterable[Record] = ()) -> None:
        self.memory, self.records = memory, list(records)
        self._plain = [plain(record) for record in self.records]

    def add(self, record: Record) -> None:
        """One more generation."""
        self.records.append(record)
        self._plain.append(plain(record))

    def path(self, after: int) -> list[int]:
        """The generations whose updates are in the centre after ``after``, in order."""
        steps = []
        while after := self._node(after):
            after -= 1
            steps.append(after)
        return steps[::-1]

    def reaches(self, after: int, goal: int) -> bool:
        """Whether the centre after ``after`` is one that the centre after ``goal`` came by."""
        node = self._node(after)
        return node == 0 or node - 1 in set(self.path(goal))

    def ends(self, goal: int) -> list[int]:
        """Where its branches end, up to ``goal``, which comes last: every generation lies on the way to one."""
        left = [record.plan.generation for record in self.records[:goal] if record.back_to is not None]
        return [*left, goal]

    def updates(self, goal: int) -> list[Update]:
        """One update for each of the first ``goal`` generations; empty for those that are not in the centre."""
        made = [Update(generation, ()) for generation in range(goal)]
        path = self.path(goal)
        for place, generation in enumerate(path):
            made[generation] = self._effective(path[: place + 1])
        return made

    def last(self) -> Update:
        """What the newest generation does to the centre."""
        return self._effective(self.path(len(self.records)))

    def latest(self, count: int) -> list[Update]:
        """The last updates that moved the centre to where it is, ``count`` of them if there are so many, in order."""
        path, found = self.path(len(self.records)), list[Update]()
        while path and len(found) < count:
            if self._plain[path[-1]].terms:
                found.append(self._effective(path))
            path = path[:-1]
        return found[::-1]

    def _node(self, after: int) -> int:
        """A generation that went back is the one it went back to."""
        while after and (to := self.records[after - 1].back_to) is not None:
            after = to
        return after

    def _effective(self, path: list[int]) -> Update:
        """The update of the last generation of a path, with its memory of those before."""
        newest = self._plain[path[-1]]
        if not self.memory.active:
            return newest
        recent: list[int] = []
        for generation in reversed(path):
            if self._plain[generation].terms or generation == path[-1]:
                recent.append(generation)
            if len(recent) >= self.memory.window:
                break
        chosen = recent[::-1]
        return self.memory.effective([self._plain[g] for g in chosen], [self.records[g].alpha for g in chosen])


def plain(record: Record) -> Update:
    """What a generation's members and coefficients say, memory left out."""
    return update_of(record.plan, record.coefficients, record.alpha, record.decay)
