"""The scheduler of requests: one queue that idle workers pull from, with retries for work that fails.

A pure state machine.  It knows no Ray, no engine and no clock: every call is given the time, so that the
simulation of a thousand workers (``benchmarks/scale.py``) runs this very code.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on retries and time: see the settings of the same names in the section ``ray``."""

    retries: int = 4
    straggler_timeout: float = 60.0
    first_timeout: float = 900.0


@dataclass(slots=True)
class WorkItem:
    """A piece of work: its expected cost (in any unit), its worker (None: any), and the workers that failed it."""

    number: int
    cost: float
    only: str | None = None
    failures: list[str] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)
    """The workers that run it."""


@dataclass(frozen=True, slots=True)
class Running:
    """A worker's running task, its start time, and the task's cost."""

    number: int
    since: float
    cost: float


class Scheduler:
    """A queue of tasks; idle workers pull the largest task that they may run."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.tasks: dict[int, WorkItem] = {}
        self.running: dict[str, Running] = {}
        self.pace: float | None = None
        """Average seconds per unit of cost."""

        self.slowest = 0.0
        """Seconds per unit of cost of the slowest recent job."""
        self._queue: list[tuple[float, int]] = []

    def add(self, number: int, cost: float, *, only: str | None = None) -> None:
        """Add a task; numbers are never used twice."""
        self.tasks[number] = WorkItem(number, cost, only)
        heapq.heappush(self._queue, (-cost, number))

    @property
    def queued(self) -> int:
        """Return the number of tasks without a worker."""
        return sum(not task.workers for task in self.tasks.values())

    def next(self, worker: str, now: float, others: int) -> int | None:
        """Return an idle worker's next task: the largest waiting task, or one that is overdue on another worker.

        A worker does not get a task that it failed before while one of the ``others`` that are alive may run it.
        """
        passed: list[tuple[float, int]] = []
        found: int | None = None
        while self._queue and found is None:
            entry = heapq.heappop(self._queue)
            task = self.tasks.get(entry[1])
            if task is None or task.workers:
                continue
            if task.only not in (None, worker) or (worker in task.failures and others > 0):
                passed.append(entry)
            else:
                found = task.number
        for entry in passed:
            heapq.heappush(self._queue, entry)
        number = self._overdue_of_others(worker, now) if found is None else found
        if number is not None:
            self.tasks[number].workers.add(worker)
            self.running[worker] = Running(number, now, self.tasks[number].cost)
        return number

    def _overdue_of_others(self, worker: str, now: float) -> int | None:
        """Return the longest overdue task that runs on only one other worker."""
        late = []
        for other, run in self.running.items():
            task = self.tasks.get(run.number)
            alone = task is not None and task.workers == {other} and task.only is None
            if alone and task is not None and worker not in task.failures and self._is_late(run, now):
                late.append((run.since, run.number))
        return min(late)[1] if late else None

    def _is_late(self, run: Running, now: float) -> bool:
        """Whether a task is overdue.  Work without a cost is never duplicated: it may write files."""
        if self.pace is None or run.cost == 0.0:
            return False
        return now - run.since > max(HEDGE_SECONDS, HEDGE * self.pace * run.cost)

    def finish(self, worker: str, now: float) -> int | None:
        """Record a worker's result and return its task; None if another worker was first or the task was dropped."""
        run = self.running.pop(worker)
        pace = (now - run.since) / max(run.cost, 1e-9)
        if run.cost > 0.0:
            self.pace = pace if self.pace is None else (1.0 - MEMORY) * self.pace + MEMORY * pace
            self.slowest = max(pace, self.slowest * FADING)
        return None if self.tasks.pop(run.number, None) is None else run.number

    def release(self, worker: str) -> WorkItem | None:
        """Take a worker off its task and return the task, which waits again; None if the task was dropped."""
        run = self.running.pop(worker, None)
        task = None if run is None else self.tasks.get(run.number)
        if task is None:
            return None
        task.workers.discard(worker)
        if not task.workers:
            heapq.heappush(self._queue, (-task.cost, task.number))
        return task

    def fail(self, worker: str) -> int | None:
        """Record that a worker failed its task or is gone; return the task's number if it failed too often.

        Such a task is removed; otherwise it waits again.  While another worker runs it, twice as many failures are
        allowed.
        """
        task = self.release(worker)
        if task is None:
            return None
        task.failures.append(worker)
        if len(task.failures) > (2 * self.limits.retries + 1 if task.workers else self.limits.retries):
            del self.tasks[task.number]
            return task.number
        return None

    def drop(self, number: int) -> None:
        """Drop a task; a worker that runs it continues, and its result is ignored."""
        self.tasks.pop(number, None)

    def hopeless(self, now: float) -> list[str]:
        """Return the workers that have run a task for so long that they must hang."""
        return [worker for worker, run in self.running.items() if now - run.since > self.timeout(run)]

    def timeout(self, run: Running) -> float:
        """Return the seconds a task may take: twice and four times as many after failures, in case the task is slow."""
        if self.pace is None or run.cost == 0.0:
            return self.limits.first_timeout
        task = self.tasks.get(run.number)
        patience = 2.0 ** min(2, len(task.failures)) if task is not None else 1.0
        return patience * max(
            self.limits.straggler_timeout, HOPELESS * self.pace * run.cost, SLOWER * self.slowest * run.cost
        )
