"""Track the current activities of this process, whose progress can be shown, and whether it was interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

interrupted = threading.Event()
"""Set by the first interrupt.  Python drops an exception that a signal raises inside a ``__del__`` or the callback of a
weak reference (llvmlite has such, and every import), so a run looks here after every generation."""


@dataclass(slots=True)
class Activity:
    """A description ``what``, ``done`` of ``goal`` steps (0: unknown), and the expected seconds ``about``."""

    what: str
    goal: int = 0
    about: float = 0.0
    done: int = 0
    began: float = field(default_factory=time.monotonic)

    def left(self, now: float) -> float | None:
        """Estimate the seconds left, from the steps done or from the expected duration; None if neither is known."""
        passed = now - self.began
        if self.done and self.goal:
            return passed / self.done * (self.goal - self.done)
        return max(0.0, self.about - passed) or None


_open: list[Activity] = []


@contextmanager
def doing(what: str, *, goal: int = 0, about: float = 0.0) -> Iterator[Activity]:
    """Register an activity for the duration of the block; the block increments its ``done``."""
    activity = Activity(what, goal, about)
    begin(activity)
    try:
        yield activity
    finally:
        end(activity)


@contextmanager
def asking() -> Iterator[None]:
    """Register that this process waits for a person, which needs no sign of life: an activity without a name."""
    with doing(""):
        yield


def begin(activity: Activity) -> None:
    """Add an activity to the current ones."""
    _open.append(activity)


def end(activity: Activity) -> None:
    """Remove an activity that is done or abandoned."""
    _open[:] = [other for other in _open if other is not activity]


def current() -> tuple[Activity, ...]:
    """Return the current activities, outer ones first."""
    return tuple(_open)
