"""The scheduler of requests: one queue that idle workers pull from, with retries for work that fails.

A pure state machine.  It knows no Ray, no engine and no clock: every call is given the time, so that the
simulation of a thousand workers (``benchmarks/scale.py``) runs this very code.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from seedtune.config.sections import RaySettings
from seedtune.errors import EngineError, SeedtuneError

HEDGE = 2.0
"""A job that takes this many times the expected time also goes to an idle worker; the first result wins."""

HEDGE_SECONDS = 1.0
"""Minimum seconds before a job is duplicated: short jobs need no help."""

HOPELESS = 10.0
"""A worker is given up when its job exceeds this many times the expected time, and ``straggler_timeout``."""

SLOWER = 3.0
"""The same limit relative to the slowest recent job."""

MEMORY = 0.2
"""Weight of the newest job in the average pace."""

FADING = 0.99
"""Factor by which the slowest job's pace decays with each later job."""


@dataclass(slots=True, eq=False)
class Request:
    """A request to a worker, from the job to its rollouts (or to another result)."""

    cost: float = 0.0
    """Expected cost, in any unit; a request without a cost is never given to two workers: it may write files."""

    only: str | None = None
    """The worker that it is for; None: any."""

    operation: str = ""
    arguments: Callable[[Any], dict[str, Any]] = lambda worker: {}
    """Returns the operation's arguments by name, for the worker that takes the request."""

    read: Callable[[Any], Any] = lambda result: result
    """Returns the value for the result of the operation."""

    number: int = -1
    failures: list[str] = field(default_factory=list)
    """The workers that failed it."""

    running: dict[str, float] = field(default_factory=dict)
    """The workers that run it, and since when."""

    done: bool = False
    value: Any = None
    error: SeedtuneError | None = None
    """The user's error; `EngineError` if no worker could do it."""

    def result(self) -> Any:
        """Return the value of a finished request, or raise its error."""
        if self.error is not None:
            raise self.error
        return self.value


class Scheduler:
    """A queue of requests; idle workers pull the largest request that they may run."""

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings
        self.open: dict[int, Request] = {}
        """Unfinished requests by number."""

        self.running: dict[str, Request] = {}
        """The request that each busy worker runs, also if its result is no longer awaited."""

        self.pace: float | None = None
        """Average seconds per unit of cost."""

        self.slowest = 0.0
        """Seconds per unit of cost of the slowest recent job."""

        self._added = 0
        self._queue: list[tuple[float, int]] = []

    def add(self, request: Request) -> Request:
        """Number a request and queue it."""
        request.number = self._added
        self._added += 1
        self.open[request.number] = request
        self._push(request)
        return request

    def _push(self, request: Request) -> None:
        heapq.heappush(self._queue, (-request.cost, request.number))

    @property
    def queued(self) -> int:
        """Return the number of requests without a worker."""
        return sum(not request.running for request in self.open.values())

    def next(self, worker: str, now: float, others: int) -> Request | None:
        """Return an idle worker's next request: the largest that waits, or one that is overdue on another worker.

        A worker does not get a request that it failed before while one of the ``others`` that are alive may run it.
        """
        passed: list[Request] = []
        found: Request | None = None
        while self._queue and found is None:
            request = self.open.get(heapq.heappop(self._queue)[1])
            if request is None or request.running:
                continue
            if request.only not in (None, worker) or (worker in request.failures and others > 0):
                passed.append(request)
            else:
                found = request
        for request in passed:
            self._push(request)
        found = found or self._overdue_of_others(worker, now)
        if found is not None:
            found.running[worker] = now
            self.running[worker] = found
        return found

    def _overdue_of_others(self, worker: str, now: float) -> Request | None:
        """Return the longest overdue request that runs on only one other worker."""
        late = [
            (request.running[other], request.number)
            for other, request in self.running.items()
            if not request.done and len(request.running) == 1 and request.only is None
            if worker not in request.failures and self._is_late(request, now - request.running[other])
        ]
        return self.open[min(late)[1]] if late else None

    def _is_late(self, request: Request, seconds: float) -> bool:
        if self.pace is None or request.cost == 0.0:
            return False
        return seconds > max(HEDGE_SECONDS, HEDGE * self.pace * request.cost)

    def finish(self, worker: str, now: float) -> Request | None:
        """Record a worker's result and return its request; None if the result is no longer awaited."""
        request = self.running.pop(worker)
        seconds = now - request.running.pop(worker)
        if request.cost > 0.0:
            pace = seconds / max(request.cost, 1e-9)
            self.pace = pace if self.pace is None else (1.0 - MEMORY) * self.pace + MEMORY * pace
            self.slowest = max(pace, self.slowest * FADING)
        return None if request.done else self.drop(request)

    def release(self, worker: str) -> Request | None:
        """Take a worker off its request and return the request, which waits again; None if it is not awaited."""
        request = self.running.pop(worker, None)
        if request is None:
            return None
        del request.running[worker]
        if request.done:
            return None
        if not request.running:
            self._push(request)
        return request

    def fail(self, worker: str, why: str) -> Request | None:
        """Record that a worker failed its request or is gone; return the request if it failed too often.

        Such a request ends with an EngineError; otherwise it waits again.  While another worker runs it, twice as many
        failures are allowed.
        """
        request = self.release(worker)
        if request is None:
            return None
        request.failures.append(worker)
        allowed = 2 * self.settings.retries + 1 if request.running else self.settings.retries
        return self.drop(request, EngineError(why)) if len(request.failures) > allowed else None

    def drop(self, request: Request, error: SeedtuneError | None = None) -> Request:
        """Remove a request; a worker that runs it continues, and its result is ignored."""
        request.done, request.error = True, error
        self.open.pop(request.number, None)
        return request

    def hopeless(self, now: float) -> list[str]:
        """Return the workers that have run a request for so long that they must hang."""
        return [name for name, request in self.running.items() if now - request.running[name] > self.timeout(request)]

    def timeout(self, request: Request) -> float:
        """Return the seconds a request may take: twice and four times as many after failures, in case it is slow."""
        if self.pace is None or request.cost == 0.0:
            return self.settings.start_timeout
        expected = max(HOPELESS * self.pace, SLOWER * self.slowest) * request.cost
        factor = 1.0 if request.done else 2.0 ** min(2, len(request.failures))
        return factor * max(self.settings.straggler_timeout, expected)
