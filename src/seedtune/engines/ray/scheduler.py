"""The scheduler of requests: one queue that idle workers pull from, and what becomes of work that fails.

A pure state machine.  It knows no Ray, no engine and no clock: every call is told what time it is, so that the
simulation of a thousand workers (``benchmarks/scale.py``) runs this very code.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

HEDGE = 2.0
"""A job that runs longer than so many times what was expected is given to an idle worker as well; the first wins."""

HEDGE_SECONDS = 1.0
"""No job is doubled before it has run so long: what is quick needs no help."""

HOPELESS = 10.0
"""A worker is given up when its job takes longer than so many times the expected, and than ``straggler_timeout``."""

SLOWER = 3.0
"""The same for times the slowest of late."""

MEMORY = 0.2
"""Weight of the newest job in the average pace."""

FADING = 0.99
"""What is left of the slowest job's pace with each job after it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How often and how long: see the settings of the same names in the section ``ray``."""

    retries: int = 4
    straggler_timeout: float = 60.0
    first_timeout: float = 900.0


@dataclass(slots=True)
class WorkItem:
    """A piece of work: what it should cost (in any unit), for whom it is (None: anybody), and who failed it."""

    number: int
    cost: float
    only: str | None = None
    failures: list[str] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)
    """Who is at it."""


@dataclass(frozen=True, slots=True)
class Running:
    """A worker at a task, since when, and what the task costs."""

    number: int
    since: float
    cost: float


class Scheduler:
    """A queue of tasks; workers that are idle pull the largest that they may do."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.tasks: dict[int, WorkItem] = {}
        self.running: dict[str, Running] = {}
        self.pace: float | None = None
        """Seconds per unit of cost, an average."""

        self.slowest = 0.0
        """The same of the slowest job of late."""
        self._queue: list[tuple[float, int]] = []

    def add(self, number: int, cost: float, *, only: str | None = None) -> None:
        """A new task; numbers are never used twice."""
        self.tasks[number] = WorkItem(number, cost, only)
        heapq.heappush(self._queue, (-cost, number))

    @property
    def queued(self) -> int:
        """Tasks that nobody is at."""
        return sum(not task.workers for task in self.tasks.values())

    def next(self, worker: str, now: float, others: int) -> int | None:
        """What an idle worker does next: the largest waiting task, or one that another is overdue with.

        A worker does not get what it failed before while one of the ``others`` that are alive may do it.
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
        """What another has been at for too long, alone; the longest."""
        late = []
        for other, run in self.running.items():
            task = self.tasks.get(run.number)
            alone = task is not None and task.workers == {other} and task.only is None
            if alone and task is not None and worker not in task.failures and self._is_late(run, now):
                late.append((run.since, run.number))
        return min(late)[1] if late else None

    def _is_late(self, run: Running, now: float) -> bool:
        """Work without a cost is never doubled: it may write files."""
        if self.pace is None or run.cost == 0.0:
            return False
        return now - run.since > max(HEDGE_SECONDS, HEDGE * self.pace * run.cost)

    def finish(self, worker: str, now: float) -> int | None:
        """A worker has an answer: the number of its task, or None if another was first or nobody wants it any more."""
        run = self.running.pop(worker)
        pace = (now - run.since) / max(run.cost, 1e-9)
        if run.cost > 0.0:
            self.pace = pace if self.pace is None else (1.0 - MEMORY) * self.pace + MEMORY * pace
            self.slowest = max(pace, self.slowest * FADING)
        return None if self.tasks.pop(run.number, None) is None else run.number

    def release(self, worker: str) -> WorkItem | None:
        """A worker is not at its task any more; the task, if somebody still wants it, which waits again."""
        run = self.running.pop(worker, None)
        task = None if run is None else self.tasks.get(run.number)
        if task is None:
            return None
        task.workers.discard(worker)
        if not task.workers:
            heapq.heappush(self._queue, (-task.cost, task.number))
        return task

    def fail(self, worker: str) -> int | None:
        """A worker could not do its task, or is gone; the number of the task if that was once too often.

        Then the task is forgotten; otherwise it waits again.  While another is still at it, twice as many are allowed.
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
        """Nobody wants a task any more; who is at it goes on, and is not heard."""
        self.tasks.pop(number, None)

    def hopeless(self, now: float) -> list[str]:
        """Workers that have been at a task for so long that they must hang."""
        return [worker for worker, run in self.running.items() if now - run.since > self.timeout(run)]

    def timeout(self, run: Running) -> float:
        """Seconds that a task may take: twice and four times as many after failures, should it be its nature."""
        if self.pace is None or run.cost == 0.0:
            return self.limits.first_timeout
        task = self.tasks.get(run.number)
        patience = 2.0 ** min(2, len(task.failures)) if task is not None else 1.0
        return patience * max(
            self.limits.straggler_timeout, HOPELESS * self.pace * run.cost, SLOWER * self.slowest * run.cost
        )
