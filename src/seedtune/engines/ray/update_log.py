"""The log of updates since the base model was loaded, and the part of it that a worker misses."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seedtune.engines.codec import CompactUpdate
from seedtune.engines.ray.protocol import StartWeights, Sync
from seedtune.engines.snapshots import Snapshot
from seedtune.types import Term, Update

RECENT = 8
"""Updates whose terms are kept, so that a request can refer to them by number."""


@dataclass(slots=True)
class UpdateLog:
    """A list of updates from a start: the base model, or a snapshot; ``saved`` lists the snapshots, newest first.

    Every load begins a new ``epoch``; ``position`` counts the updates in the current weights, including those in the
    snapshot that the epoch started from.
    """

    saved: Callable[[], Sequence[Snapshot]]
    epoch: int = -1
    folder: Path | None = None
    first: int = 0
    updates: list[CompactUpdate] = field(default_factory=list)
    recent: deque[tuple[Term, ...]] = field(default_factory=lambda: deque(maxlen=RECENT))
    fingerprints: dict[int, str] = field(default_factory=dict)
    """Fingerprints by position."""

    def begin(self, folder: Path | None) -> None:
        """Start a new epoch from the base model, or from the snapshot in ``folder``."""
        self.first = next((snapshot.generations for snapshot in self.saved() if snapshot.folder == folder), 0)
        self.epoch, self.folder = self.epoch + 1, folder
        for record in (self.updates, self.recent, self.fingerprints):
            record.clear()

    @property
    def position(self) -> int:
        """The number of updates in the current weights."""
        return self.first + len(self.updates)

    def add(self, updates: Sequence[Update]) -> None:
        """Add updates."""
        self.updates += map(CompactUpdate.of, updates)
        self.recent += (update.terms for update in updates)

    def sync(self, epoch: int, position: int, *, snapshots: bool = True) -> Sync:
        """Return the data that brings a worker up to date; with ``snapshots`` from the newest useful snapshot."""
        start = None
        if epoch != self.epoch:
            start, position = StartWeights(None if self.folder is None else str(self.folder), None), self.first
            for saved in self.saved() if snapshots else ():
                if saved.generations > self.first and self.fingerprints.get(saved.generations) == saved.fingerprint:
                    start, position = StartWeights(str(saved.folder), saved.fingerprint), saved.generations
                    break
        return Sync(self.epoch, start, position, self.updates[position - self.first :])

    def number_of(self, terms: Sequence[Term]) -> int | None:
        """Return how many updates came before the one with these terms, if it is a recent one."""
        for back, known in enumerate(reversed(self.recent), start=1):
            if known and known == tuple(terms):
                return self.position - back
        return None
