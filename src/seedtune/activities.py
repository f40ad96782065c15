"""What this process is busy with, so that long work can be shown while it lasts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class Activity:
    """One piece of work: what it is, how many steps are done of how many (0: unknown), and seconds it may take."""

    what: str
    goal: int = 0
    about: float = 0.0
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def left(self, now: float) -> float | None:
        """Seconds left, from the steps that are done or from what it may take; None if neither says."""
        passed = now - self.began
        if self.done and self.goal:
            return passed / self.done * (self.goal - self.done)
        return max(0.0, self.about - passed) or None


_open: list[Activity] = []


@contextmanager
def doing(what: str, *, goal: int = 0, about: float = 0.0) -> Iterator[Activity]:
    """While open, this process is busy with it; who does it counts ``done`` up."""
    activity = Activity(what, goal, about)
    begin(activity)
    try:
        yield activity
    finally:
        end(activity)


def begin(activity: Activity) -> None:
    """From now on the process is busy with this, too."""
    _open.append(activity)


def end(activity: Activity) -> None:
    """It is done, or given up."""
    _open[:] = [other for other in _open if other is not activity]


def current() -> tuple[Activity, ...]:
    """What the process is busy with, the whole before its parts."""
    return tuple(_open)
