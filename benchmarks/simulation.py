"""Simulated Ray workers: the real scheduler, workers that only wait, and a driver that does one thing at a time.

What is real: `seedtune.engines.ray.scheduler.Scheduler`, which decides who does what (`Dealt` stands in its place for
static assignment).  What is a model, in the order in which it happens:

* The driver is one thread.  A job costs it ``dispatch`` seconds, every rollout of an answer ``collect`` seconds, an
  update ``between`` seconds; meanwhile answers wait.
* A job travels ``latency`` seconds, and so does its answer.  The worker first applies the updates that it misses, in
  one pass (``update`` seconds, ``further`` for every one after the first), then evaluates.
* Evaluation takes what the distribution draws for the job's cost, times the worker's slowness.
* Workers die and hang as Poisson processes.  A replacement is there after ``restart`` seconds, with the newest
  snapshot, and replays the updates since before it asks for work.  A hang is not reported: the dispatcher's
  time-out finds it.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scenario import HOUR, Outcome, Piece, Scenario

from seedtune.engines.ray.scheduler import Request, Scheduler
from seedtune.engines.ray.statistics import Span

# -------------------------------------------------------------------------------- its parts


class Dealt:
    """Static assignment, with the dispatcher's methods: job k belongs to worker k mod n from the beginning."""

    def __init__(self, workers: int) -> None:
        self.queues: list[deque[Request]] = [deque() for _ in range(workers)]
        self.running: dict[str, Request] = {}
        self.added = 0

    def add(self, request: Request) -> Request:
        self.queues[self.added % len(self.queues)].append(request)
        request.number = self.added
        self.added += 1
        return request

    @property
    def queued(self) -> int:
        return sum(map(len, self.queues))

    def next(self, worker: str, now: float, others: int) -> Request | None:
        queue = self.queues[slot_of(worker)]
        if not queue:
            return None
        self.running[worker] = queue.popleft()
        return self.running[worker]

    def finish(self, worker: str, now: float) -> Request:
        return self.running.pop(worker)

    def fail(self, worker: str, why: str) -> None:
        if worker in self.running:
            self.queues[slot_of(worker)].appendleft(self.running.pop(worker))

    def hopeless(self, now: float) -> list[str]:
        return []


def slot_of(worker: str) -> int:
    """The place that a worker fills; its replacement has the same."""
    return int(worker.partition(".")[0])


@dataclass(slots=True)
class Doing:
    """A job on a worker: when it was sent, its evaluation's begin and end, and the seconds of catching up before."""

    piece: Piece
    sent: float
    begun: float
    end: float
    synced: float


@dataclass(slots=True)
class Worker:
    """One that lives: its slowness, how many updates it has, what it does, and since when it hangs."""

    slowness: float
    position: int
    doing: Doing | None = None
    hung: float = math.inf


# --------------------------------------------------------------------------- the simulation


class Simulation:
    """One scenario, event by event.  ``spans`` keeps every answered job if asked to."""

    def __init__(self, scenario: Scenario, *, trace: bool = False) -> None:
        self.scenario, self.workers, self.driver = scenario, scenario.workers, scenario.driver
        self.generator = np.random.default_rng(scenario.seed)
        self.members = sum(piece.members for piece in scenario.jobs)
        self.scheduler = Dealt(self.workers.count) if self.driver.static else Scheduler(self.driver.settings)
        self.events: list[tuple[float, int, Callable[[str], None], str]] = []
        self.order = self.position = 0
        self.clock = self.driver_busy = self.busy = self.lost = self.rollouts = 0.0
        self.alive: dict[str, Worker] = {}
        self.idle: dict[str, None] = {}
        self.jobs: dict[Request, tuple[int, Piece]] = {}
        self.open: Counter[int] = Counter()
        self.arrived: Counter[int] = Counter()
        self.stale: list[int] = []
        self.joined: list[float] = []
        self.ends: list[float] = []
        self.counts = dict.fromkeys(("made", "done", "given_up", "doubled", "deaths", "found"), 0)
        self.spans: list[Span] | None = [] if trace else None

    def run(self) -> Outcome:
        """Until the last update."""
        late = self.workers.late[0] if self.workers.late else 0
        for slot in range(self.workers.count - late):
            self._at(0.0, self._join, f"{slot}.0")
        self._begin_generation()
        self._at(self.driver.look, self._look, "")
        while self.position < self.scenario.generations:
            time, _, happen, name = heapq.heappop(self.events)
            # Events come in their order; the driver may be later than they are, because it was busy.
            self.now, self.clock = time, max(self.clock, time)
            happen(name)
            while self.position < self.scenario.generations and self._due():
                self._update()
        return self._outcome()

    def _at(self, time: float, happen: Callable[[str], None], name: str) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, happen, name))

    # ---------------------------------------------------------------------- generations

    def _begin_generation(self) -> None:
        for piece in self.scenario.jobs:
            self.counts["made"] += 1
            self.open[self.position] += 1
            self.jobs[self.scheduler.add(Request(piece.cost))] = self.position, piece
        self._give(list(self.idle)[::-1])  # who was heard last goes first, as in the Ray engine

    def _due(self) -> bool:
        """Whether the driver can update: see ``RaySettings.max_staleness``."""
        if any(self.open[g] for g in list(self.open) if g <= self.position - self.driver.max_staleness):
            return False
        if not self.open:
            return True
        return bool(self.idle) and 2 * self.arrived[self.position] >= self.members and not self.scheduler.queued

    def _update(self) -> None:
        self._work(self.driver.between)
        self.position += 1
        self.ends.append(self.clock)
        if self.position == self.scenario.generations:
            return
        late = self.workers.late
        if late and late[1] == self.position:
            for slot in range(self.workers.count - late[0], self.workers.count):
                self._at(self.clock, self._join, f"{slot}.0")
        self._begin_generation()

    def _work(self, seconds: float) -> None:
        self.clock += seconds
        self.driver_busy += seconds

    # ----------------------------------------------------------------------------- jobs

    def _give(self, names: Iterable[str]) -> None:
        for name in names:
            request = self.scheduler.next(name, self.clock, len(self.alive) - 1)
            if request is not None:
                del self.idle[name]
                self._send(name, request)
            elif not self.driver.static:
                return  # no idle worker has failed a request: if one gets none, all get none

    def _send(self, name: str, request: Request) -> None:
        sent, worker, (_, piece) = self.clock, self.alive[name], self.jobs[request]
        self._work(self.driver.dispatch)
        synced = self.workers.catch_up(self.position - worker.position)
        worker.position = self.position
        begun = self.clock + self.driver.latency + synced
        end = begun + self.scenario.seconds.draw(self.generator, piece.cost) * worker.slowness
        worker.doing = Doing(piece, sent, begun, end, synced)
        self._at(end + self.driver.latency, self._answer, name)

    def _answer(self, name: str) -> None:
        worker = self.alive.get(name)
        if worker is None or worker.hung < self.now or worker.doing is None:
            return
        doing, worker.doing = worker.doing, None
        self.busy += doing.end - doing.begun
        request = self.scheduler.finish(name, self.clock)
        received = self.clock
        if self.spans is not None and request is not None:
            times = (doing.sent, received, doing.synced, doing.end - doing.begun, self.jobs[request][0])
            self.spans.append(Span(name, request.number, doing.piece.cost, "evaluate", *times))
        if request is None:
            self.lost += doing.end - doing.begun
            self.counts["doubled"] += 1
        else:
            self._close(request, "done")
            self._work(self.driver.collect * doing.piece.cost)
        self._rest(name)

    def _close(self, request: Request, outcome: str) -> None:
        generation, piece = self.jobs.pop(request)
        self.counts[outcome] += 1
        self.arrived[generation] += piece.members
        self.open[generation] -= 1
        if not self.open[generation]:
            del self.open[generation]
        if outcome == "done":
            self.stale.append(self.position - generation)
            self.rollouts += piece.cost

    def _rest(self, name: str) -> None:
        """A worker has nothing to do; if others have not either, nothing is there."""
        alone = not self.idle or self.driver.static
        self.idle[name] = None
        if alone:
            self._give([name])

    # ------------------------------------------------------------- workers come and go

    def _join(self, name: str) -> None:
        """A worker has loaded the newest snapshot, and replays what came after."""
        missed = self.driver.missing(self.position)
        seconds = self.workers.catch_up(missed)
        slowness = self.workers.slowness[slot_of(name) % len(self.workers.slowness)]
        self.alive[name] = Worker(slowness, self.position)
        if self.workers.late and self.position and name.endswith(".0"):
            self.joined.append(seconds)
        for rate, fate in ((self.workers.failures, self._die), (self.workers.hangs, self._hang)):
            if rate:
                self._at(self.now + self.generator.exponential(HOUR / rate), fate, name)
        self._at(self.now + seconds, self._ready, name)

    def _ready(self, name: str) -> None:
        if name in self.alive:
            self._rest(name)

    def _die(self, name: str) -> None:
        if name in self.alive:
            self.counts["deaths"] += 1
            self._lose(name)

    def _hang(self, name: str) -> None:
        if name in self.alive:
            self.alive[name].hung = self.now

    def _lose(self, name: str) -> None:
        """A worker is gone: its job waits again, and a replacement is started."""
        worker = self.alive.pop(name)
        self.idle.pop(name, None)
        if worker.doing is not None:
            spent = max(0.0, min(self.now, worker.doing.end, worker.hung) - worker.doing.begun)
            self.busy += spent
            self.lost += spent
        given_up = self.scheduler.fail(name, "it is gone")
        if given_up is not None:
            self._close(given_up, "given_up")
        slot, _, life = name.partition(".")
        self._at(self.now + self.workers.restart, self._join, f"{slot}.{int(life) + 1}")
        self._give(list(self.idle)[::-1])

    def _look(self, _: str) -> None:
        """What the driver does every second: give up who hangs, and double what is overdue."""
        for name in self.scheduler.hopeless(self.clock):
            self.counts["found"] += 1
            self._lose(name)
        self._give(list(self.idle)[::-1])
        self._at(self.now + self.driver.look, self._look, "")

    # -------------------------------------------------------------------------- the end

    def _outcome(self) -> Outcome:
        still = [worker for worker in self.alive.values() if worker.doing is not None]
        cut = [max(0.0, min(w.doing.end, w.hung, self.clock) - w.doing.begun) for w in still if w.doing]
        busy = self.busy + sum(cut)
        return Outcome(
            elapsed=self.clock,
            utilisation=busy / (self.clock * self.workers.count),
            generations_per_hour=self.position / self.clock * HOUR,
            rollouts_per_second=self.rollouts / self.clock,
            driver_busy=self.driver_busy / self.clock,
            lost=self.lost / busy if busy else 0.0,
            staleness=sum(self.stale) / len(self.stale) if self.stale else 0.0,
            counts={**self.counts, "open": len(self.jobs)},
            joined=tuple(self.joined),
            ends=tuple(self.ends),
        )


def simulate(scenario: Scenario) -> Outcome:
    """What becomes of a scenario; the same for the same seed."""
    return Simulation(scenario).run()
