"""The log of updates since the base model was loaded, and the part of it that a worker misses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seedtune.engines import compact_codec
from seedtune.engines.codec import Plain
from seedtune.engines.snapshots import Snapshot
from seedtune.types import Term, Update

RECENT = 8
"""Updates whose terms are kept, so that a request can refer to them by number."""

Saved = Callable[[], Sequence[Snapshot]]
"""Lists the existing snapshots, newest first."""


@dataclass(slots=True)
class UpdateLog:
    """A list of updates from a start: the base model, or a snapshot.

    Every load begins a new ``epoch``; ``position`` counts the updates in the current weights, including those in the
    snapshot that the epoch started from.
    """

    saved: Saved
    epoch: int = -1
    folder: Path | None = None
    first: int = 0
    updates: list[Plain] = field(default_factory=list)
    terms: list[tuple[Term, ...]] = field(default_factory=list)
    prints: dict[int, str] = field(default_factory=dict)
    """Fingerprints by position."""

    def begin(self, folder: Path | None) -> None:
        """Start a new epoch from the base model, or from the snapshot in ``folder``."""
        held = next((one.generations for one in self.saved() if one.folder == folder), 0)
        self.epoch, self.folder, self.first = self.epoch + 1, folder, held
        self.updates, self.terms, self.prints = [], [], {}

    @property
    def position(self) -> int:
        """The number of updates in the current weights."""
        return self.first + len(self.updates)

    def add(self, updates: Sequence[Update]) -> None:
        """Add updates."""
        self.updates += [compact_codec.update(update) for update in updates]
        self.terms = [*self.terms, *(update.terms for update in updates)][-RECENT:]

    def sync(self, epoch: int, position: int, *, snapshots: bool = True) -> Plain:
        """Return the data that brings a worker up to date; with ``snapshots`` from the newest useful snapshot."""
        start = None
        if epoch != self.epoch:
            position, *start = self._start(snapshots)
        return [self.epoch, start, position, self.updates[position - self.first :]]

    def number_of(self, terms: Sequence[Term]) -> int | None:
        """Return how many updates came before the one with these terms, if it is a recent one."""
        for back, known in enumerate(reversed(self.terms), start=1):
            if known and known == tuple(terms):
                return self.position - back
        return None

    def _start(self, snapshots: bool) -> tuple[int, str | None, str | None]:
        """Return where a worker without weights of this epoch starts: position, snapshot, its fingerprint."""
        for one in self.saved() if snapshots else ():
            if one.generations > self.first and self.prints.get(one.generations) == one.fingerprint:
                return one.generations, str(one.folder), one.fingerprint
        return self.first, None if self.folder is None else str(self.folder), None
