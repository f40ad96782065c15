"""The controller of the Ray workers: tracks workers, requests and results.  `turn` runs one round."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

from seedtune.config.sections import RaySettings
from seedtune.engines.base import EngineInfo
from seedtune.engines.codec import Plain
from seedtune.engines.ray import cluster, protocol
from seedtune.engines.ray.agreement import Agreement
from seedtune.engines.ray.protocol import Known, Reply, reply_from
from seedtune.engines.ray.scheduler import Scheduler
from seedtune.engines.ray.statistics import Span, Statistics
from seedtune.engines.ray.status_file import StatusFile
from seedtune.engines.ray.update_log import UpdateLog
from seedtune.engines.ray.worker_pool import WorkerHandle, WorkerPool
from seedtune.errors import EngineError, SeedtuneError, StorageError

TICK = 0.25
"""Maximum seconds that a round waits for a reply."""

TRIES = 3
"""Consecutive workers that fail to start before a run that never had a worker stops."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request: a worker operation, a function for a worker's arguments, and a function that decodes the result."""

    operation: str
    tell: Callable[[WorkerHandle], Plain]
    hear: Callable[[Plain], Any]
    cost: float = 0.0
    only: str | None = None


@dataclass(frozen=True, slots=True)
class RequestResult:
    """Outcome of a request: a ``value``, a user ``error``, or ``why`` no worker could do it."""

    value: Any = None
    error: SeedtuneError | None = None
    why: str | None = None


class Controller:
    """Sends requests to workers, keeps their weights up to date, and continues when workers are lost."""

    def __init__(
        self, settings: RaySettings, *, scheduler: Scheduler, update_log: UpdateLog, status_file: StatusFile
    ) -> None:
        self.settings, self.scheduler, self.update_log, self.status_file = settings, scheduler, update_log, status_file
        self.statistics = Statistics()
        self.pool: WorkerPool | None = None
        self.ray = cluster.Cluster(settings)
        self.info: EngineInfo | None = None
        self.agreement = Agreement()
        self.refused: SeedtuneError | None = None
        """Why a worker could not load, if the user can fix it."""

        self._requests: dict[int, Request] = {}
        self._personal: dict[int, str] = {}
        self._done: dict[int, RequestResult] = {}
        self._numbers = count()
        self._alone: float | None = None
        self._looked = 0.0

    @property
    def _pool(self) -> WorkerPool:
        assert self.pool is not None, "load comes first"
        return self.pool

    # ------------------------------------------------------------------------------------- requests

    def submit(self, request: Request) -> int:
        """Queue a request and return its number."""
        number = next(self._numbers)
        self._requests[number] = request
        if request.only is not None:
            self._personal[number] = request.only
        self.scheduler.add(number, request.cost, only=request.only)
        return number

    def collect(self, numbers: Iterable[int]) -> Iterator[tuple[int, RequestResult]]:
        """Yield the results of requests as they arrive; requests that the caller stops waiting for are dropped."""
        waiting = set(numbers)
        try:
            while waiting:
                for number in sorted(waiting & self._done.keys()):
                    waiting.discard(number)
                    yield number, self._done.pop(number)
                if waiting:
                    self.turn()
        finally:
            for number in waiting:
                self.drop(number)

    def take(self, number: int) -> RequestResult | None:
        """Return the result of a request, if it has arrived."""
        return self._done.pop(number, None)

    def drop(self, number: int) -> None:
        """Drop a request: its result is no longer awaited."""
        self.scheduler.drop(number)
        self._requests.pop(number, None)
        self._done.pop(number, None)

    def _answer(self, number: int, answer: RequestResult) -> None:
        if self._requests.pop(number, None) is not None:
            self._done[number] = answer

    # --------------------------------------------------------------------------------------- a round

    def turn(self) -> None:
        """Check the workers, send requests to idle ones, and receive replies."""
        self._hear(0.0)  # first, so that time this process was busy counts against no worker
        now = time.monotonic()
        self._watch(now)
        self._pool.tend(now)
        self._forget_the_gone()
        self._hand_out(now)
        self._hear(TICK)

    def _hear(self, seconds: float) -> None:
        if seconds or any(worker.call is not None for worker in self._pool.workers.values()):
            for worker, raw in self._pool.wait(seconds):
                self._take(worker, raw, time.monotonic())

    def _forget_the_gone(self) -> None:
        """Fail requests that were for workers that are gone."""
        for number, name in list(self._personal.items()):
            if number not in self._requests:
                del self._personal[number]
            elif name not in self._pool.workers:
                self.scheduler.drop(number)
                self._answer(number, RequestResult(why=f"worker {name} is gone"))

    def starving(self) -> bool:
        """Return whether the queue is empty and a worker is idle."""
        enrolled = self._pool.enrolled
        return self.scheduler.queued == 0 and any(worker.call is None for worker in enrolled)

    def _hand_out(self, now: float) -> None:
        enrolled = self.here()
        # The worker heard from last is the least likely to hang.
        for worker in sorted(self._pool.idle(), key=lambda worker: -worker.heard):
            if worker not in enrolled:
                self._send(worker, "enrol", None, now)
            elif len(enrolled) >= self.settings.min_workers:
                number = self.scheduler.next(worker.name, now, len(enrolled) - 1)
                if number is not None:
                    request = self._requests[number]
                    self._send(worker, request.operation, request.tell(worker), now)

    def here(self) -> list[WorkerHandle]:
        """Return the workers that hold weights of this epoch."""
        return [worker for worker in self._pool.enrolled if worker.epoch == self.update_log.epoch]

    def _send(self, worker: WorkerHandle, operation: str, told: Plain, now: float) -> None:
        sync = self.update_log.sync(worker.epoch, worker.position, snapshots=not worker.plain)
        request = protocol.pack([operation, told, sync])
        self.statistics.traffic.sent += len(request)
        self._pool.send(worker, request, now)

    # ----------------------------------------------------------------------------------------- replies

    def _take(self, worker: WorkerHandle, raw: bytes | Exception, now: float) -> None:
        if isinstance(raw, Exception):
            self._lose(worker, cluster.said(raw), now)
            return
        self.statistics.traffic.received += len(raw)
        worker.heard = now
        try:
            reply = reply_from(raw)
        except EngineError as error:
            self._lose(worker, f"it gave {error}", now)
            return
        worker.epoch, worker.position = reply.epoch, reply.position
        if reply.kind is not None:
            worker.known = Known()  # how much of the request the worker received is unknown
        if reply.behind:
            self.scheduler.release(worker.name)
        elif reply.broken:
            self._lose(worker, reply.message, now)
        elif worker.name in self.scheduler.running:
            self._finish(worker, reply, now)
        else:
            self._enrol(worker, reply, now)

    def _finish(self, worker: WorkerHandle, reply: Reply, now: float) -> None:
        """Handle a worker's reply to a request."""
        run = self.scheduler.running[worker.name]
        request = self._requests.get(run.number)
        answer = RequestResult(error=reply.error()) if reply.kind is not None else RequestResult()
        if request is not None and reply.kind is None:
            try:
                answer = RequestResult(request.hear(reply.done))
            except EngineError as error:
                self._lose(worker, f"it gave {error}", now)
                return
        worker.jobs, worker.busy = worker.jobs + 1, worker.busy + now - worker.sent
        kind = "late" if request is None else request.operation
        place = (worker.name, run.number, run.cost, kind, worker.sent, now)
        self.statistics.add(Span(*place, reply.synced, reply.worked, reply.position), reply)
        if run.cost:
            self._pool.settle(worker)
        number = self.scheduler.finish(worker.name, now)
        if number is None:
            self.statistics.late += 1
        else:
            self._answer(number, answer)

    def _enrol(self, worker: WorkerHandle, reply: Reply, now: float) -> None:
        """Enrol a worker that has loaded, or handle its failure, which the user may have to fix."""
        if reply.kind is not None:
            self._refuse(worker, reply, now)
            return
        try:
            worker.pid, worker.host, about = reply.done
            info = protocol.info_from(about)
        except (TypeError, ValueError, KeyError) as error:
            self._lose(worker, f"it enrolled with a malformed reply ({error}): has it the same seedtune?", now)
            return
        worker.enrolled, worker.began = True, reply.position
        if self.info is None:
            self.info = info
        objection = self.agreement.objection(worker.kind, info.arithmetic)
        if objection is not None:
            self._lose(worker, objection, now)
            return
        self._pool.compute_by(worker.kind, self.agreement.products(worker.kind))
        mine, its = ((one.base_fingerprint, one.weights_dtype) for one in (self.info, info))
        if mine != its:
            told = f"it holds a base model {its[0]} with weights in {its[1]}, the others {mine[0]} with {mine[1]}"
            self._lose(worker, f"{told}: give all workers the same model and precision", now)

    def _refuse(self, worker: WorkerHandle, reply: Reply, now: float) -> None:
        error = reply.error()
        by_snapshot = isinstance(error, StorageError) and not worker.plain and self.update_log.folder is None
        if by_snapshot:
            worker.plain = True  # retry from the base model
            return
        self.refused = self.agreement.explained(worker.name, worker.kind, error)
        self._lose(worker, str(self.refused), now)

    # ------------------------------------------------------------------------------------------- losses

    def _lose(self, worker: WorkerHandle, why: str, now: float) -> None:
        """Remove a lost or unusable worker and give its work to others."""
        run = self.scheduler.running.get(worker.name)
        given_up = self.scheduler.fail(worker.name)
        self._pool.lose(worker, why, now)
        self.statistics.lost += 1
        if given_up is not None:
            self.statistics.given_up += 1
            self._pool.note(f"a job failed {self.settings.retries + 1} times and is given up; the last time: {why}")
            self._answer(given_up, RequestResult(why=why))
        elif run is not None and run.number in self._requests:
            self.statistics.retried += 1

    def quarantine(self, worker: WorkerHandle, held: str, right: str | None, now: float) -> None:
        """Report and rebuild a worker whose weights differ from the others'."""
        told = f"its weights have fingerprint {held}"
        self._lose(
            worker, f"{told}, those of most workers {right}" if right else f"{told}, another worker's differ", now
        )

    def give_up(self, asked: dict[int, str]) -> None:
        """Give up workers that take too long over a request of their own; leave alone those busy with a job."""
        for number, name in asked.items():
            run, worker = self.scheduler.running.get(name), self._pool.workers.get(name)
            self.drop(number)
            if worker is not None and run is not None and run.number == number:
                self._lose(worker, "it did not answer in time", time.monotonic())

    def near(self) -> WorkerHandle:
        """Return a worker on this machine, or any other if there is none here."""
        while not self.here():
            self.turn()
        mine = socket.gethostname()
        return next((worker for worker in self.here() if worker.host == mine), self.here()[0])

    def _watch(self, now: float) -> None:
        """Detect hung workers, apply requested worker counts, and check that workers are left."""
        workers = self._pool.workers
        for name in self.scheduler.hopeless(now):
            if name in workers:
                run = self.scheduler.running[name]
                self._lose(workers[name], f"no answer for {now - run.since:.0f} s", now)
            else:
                self.scheduler.fail(name)
        for worker in list(workers.values()):
            starting = worker.call is not None and worker.name not in self.scheduler.running
            if starting and now - worker.sent > self.settings.start_timeout:
                self._lose(worker, f"it did not start in {self.settings.start_timeout:g} s", now)
        if self.status_file.due(now):
            self._look(now)
        self._check_alone(now)

    def _look(self, now: float) -> None:
        requested = self.status_file.requested()
        if requested:
            self.scale(requested)
        self.status_file.show(self.status(now))

    def scale(self, requested: dict[str, int]) -> None:
        """Set the number of workers of each existing kind, within the limits of the settings."""
        pool, settings = self._pool, self.settings
        target = {**pool.target, **{kind: max(0, n) for kind, n in requested.items() if kind in pool.target}}
        if sum(target.values()) < settings.min_workers:
            pool.note(f"asked for {target}, which is less than min_workers={settings.min_workers}: nothing changes")
            return
        pool.note(f"workers: {pool.target} → {target}")
        pool.target = target

    def _check_alone(self, now: float) -> None:
        """Raise EngineError when the workers that the run needs do not come."""
        pool, enough = self._pool, len(self._pool.enrolled) >= self.settings.min_workers
        if enough:
            self._alone = None
            return
        self._alone = now if self._alone is None else self._alone
        waited, last = now - self._alone, (pool.notes[-1] if pool.notes else "none has started yet")
        if self.info is None and pool.lost >= TRIES:
            raise EngineError(f"no worker can start: {last}")
        if waited > self.settings.start_timeout:
            raise EngineError(
                f"fewer than ray.min_workers={self.settings.min_workers} workers for {waited:.0f} s ({last}). "
                "Everything up to the last complete generation is safe: seedtune resume goes on from there."
            )
        if waited > 5.0 and not pool.enrolled and now - self._looked > 5.0:
            self._looked = now
            if not self.ray.alive():
                self._reconnect()

    def _reconnect(self) -> None:
        """Recover after Ray itself is gone, and all workers with it."""
        pool = self._pool
        pool.note("Ray is gone: starting again")
        for worker in list(pool.workers.values()):
            self.scheduler.fail(worker.name)
            pool.workers.pop(worker.name)
        self.ray.reconnect()

    # ------------------------------------------------------------------------------------------- telling

    def status(self, now: float) -> dict[str, Any]:
        """Return the state of the workers, as plain data."""
        pool = self._pool
        return {
            "time": time.time(),
            "target": pool.target,
            "min_workers": self.settings.min_workers,
            "position": self.update_log.position,
            "queued": self.scheduler.queued,
            "open": len(self.scheduler.tasks),
            "lost": pool.lost,
            "workers": [self._shown(worker, now) for worker in pool.workers.values()],
            "notes": list(pool.notes),
        }

    def _shown(self, worker: WorkerHandle, now: float) -> dict[str, Any]:
        run = self.scheduler.running.get(worker.name)
        state = "starting" if not worker.enrolled else "idle" if worker.call is None else "working"
        return {
            "name": worker.name,
            "kind": worker.kind,
            "state": state,
            "host": worker.host,
            "pid": worker.pid,
            "position": worker.position,
            "jobs": worker.jobs,
            "busy": round(worker.busy / max(1e-9, now - worker.since), 3),
            "at_it": None if run is None else round(now - run.since, 1),
        }

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        if self.pool is not None:
            self.pool.close()
            self.pool = None
            self.status_file.clear()
        self.ray.close()
