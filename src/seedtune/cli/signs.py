"""Status lines during long operations, with an estimate of the remaining time."""

from __future__ import annotations

import threading
import time

from rich.console import Console

from seedtune import activities
from seedtune.activities import Activity
from seedtune.cli.console import clock


class SignsOfLife:
    """While open, print the current activity: first after five seconds, then repeatedly.

    Before the first activity it is "starting", since the libraries alone can take longer than that.

    ``EVERY`` seconds pass between two lines.  If the output is a file, it is ``LATER`` seconds after the first minute
    of an activity, so that the log of a long run stays short.
    """

    EVERY, LATER, MINUTE = 5.0, 30.0, 60.0
    PAUSE = 0.25
    """Seconds between two checks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._starting: tuple[Activity, ...] = (Activity("starting"),)
        self._whole: Activity | None = None
        self._said = self._starting[0].began
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="signs of life", daemon=True)

    def __enter__(self) -> SignsOfLife:
        """Start checking."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop checking."""
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(self.PAUSE):
            self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Print the current activity, if a line is due; none while a person is asked."""
        busy = activities.current() or self._starting
        if any(not activity.what for activity in busy):
            self._starting, busy = (), ()
        if not busy:
            self._whole = None
            return
        if self._whole is not busy[0]:
            if not self._starting:  # else nothing was printed since the start, and its five seconds go on
                self._said = busy[0].began
            self._whole = busy[0]
            if busy is not self._starting:
                self._starting = ()
        often = self.console.is_terminal or now - busy[0].began <= self.MINUTE
        every = self.EVERY if often else self.LATER
        if now - self._said >= every - self.PAUSE:
            self._said = now
            self.console.print(line(busy, now), soft_wrap=True)


def line(busy: tuple[Activity, ...], now: float) -> str:
    """Format the current activity, its progress, and its estimated remaining time."""
    whole, part = busy[0], busy[-1]
    names = whole.what if part is whole else f"{whole.what}: {part.what}"
    steps = f" {part.done} of {part.goal}" if part.goal else f" {part.done}" if part.done else ""
    left = part.left(now)
    estimate = f"{clock(now - whole.began)} so far" if left is None else f"about {clock(left)} left"
    return f"  … {names}{steps}, {estimate}"
