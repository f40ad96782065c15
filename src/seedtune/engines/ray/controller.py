"""The controller of the Ray workers: tracks workers, requests and results.  `turn` runs one round."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from seedtune.config.sections import RaySettings
from seedtune.engines import recorded_arithmetic, snapshots
from seedtune.engines.base import EngineTimes
from seedtune.engines.codec import decode, encode
from seedtune.engines.ray import cluster, status_file
from seedtune.engines.ray.agreement import Agreement
from seedtune.engines.ray.protocol import MALFORMED, Call, Enrolment, Reply, SentTexts
from seedtune.engines.ray.scheduler import Request, Scheduler
from seedtune.engines.ray.statistics import Span, Statistics
from seedtune.engines.ray.update_log import UpdateLog
from seedtune.engines.ray.worker import types_of
from seedtune.engines.ray.worker_pool import WorkerHandle, WorkerPool
from seedtune.errors import EngineError, SeedtuneError, StorageError

TICK = 0.25
"""Maximum seconds that a round waits for a reply."""

STATUS_SECONDS = 1.0
"""Seconds between two checks of the status files."""

SILENCE_SECONDS = 5.0
"""Seconds without a reply after which an idle worker is asked whether it is still there."""

TRIES = 3
"""Consecutive workers that fail to start before a run that never had a worker stops."""

SPANS = 100_000
"""Maximum pieces of work kept."""

ENROL = Request(operation="enrol")
"""The first request to every worker, and that to one which was idle for long; the scheduler does not know it."""


class Controller:
    """Sends requests to workers, keeps their weights up to date, and continues when workers are lost."""

    def __init__(self, settings: RaySettings, root: Path) -> None:
        self.settings, self.root = settings, root
        self.scheduler = Scheduler(settings)
        self.update_log = UpdateLog(partial(snapshots.listing, root / "snapshots"))
        self.statistics = Statistics()
        self.spans: deque[Span] = deque(maxlen=SPANS)
        self.pool: WorkerPool | None = None
        self.ray = cluster.Cluster(settings)
        self.agreement = Agreement()
        self.refused: SeedtuneError | None = None
        """Why a worker could not load, if the user can fix it."""

        self._personal: list[Request] = []
        self._alone: float | None = None
        self._looked = self._shown = 0.0

    @property
    def _pool(self) -> WorkerPool:
        assert self.pool is not None, "load comes first"
        return self.pool

    # ------------------------------------------------------------------------------------- requests

    def submit(self, request: Request) -> Request:
        """Queue a request."""
        if request.only is not None:
            self._personal.append(request)
        return self.scheduler.add(request)

    def finished(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Yield requests as they finish; those that the caller stops waiting for are dropped."""
        waiting = list(requests)
        try:
            while waiting:
                finished = [request for request in waiting if request.done]
                waiting = [request for request in waiting if not request.done]
                yield from finished
                if not finished:
                    self.turn()
        finally:
            for request in waiting:
                self.scheduler.drop(request)

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
            for worker, raw in self._pool.wait(seconds).items():
                self._take(worker, raw, time.monotonic())

    def _forget_the_gone(self) -> None:
        """Fail requests that were for workers that are gone."""
        self._personal = [request for request in self._personal if not request.done]
        for request in self._personal:
            if request.only not in self._pool.workers:
                self.scheduler.drop(request, EngineError(f"worker {request.only} is gone"))

    def starving(self) -> bool:
        """Return whether the queue is empty and a worker is idle."""
        return self.scheduler.queued == 0 and any(worker.call is None for worker in self._pool.enrolled)

    def _hand_out(self, now: float) -> None:
        enrolled = self.here()
        # The worker heard from last is the least likely to hang.
        for worker in sorted(self._pool.idle(), key=lambda worker: -worker.replied):
            if worker not in enrolled:
                self._send(worker, ENROL, now)
                continue
            enough = len(enrolled) >= self.settings.min_workers
            request = self.scheduler.next(worker.name, now, len(enrolled) - 1) if enough else None
            if request is not None:
                self._send(worker, request, now)
            elif now - max(worker.replied, worker.sent) > SILENCE_SECONDS:
                self._send(worker, ENROL, now)  # if it has died, the call fails

    def here(self) -> list[WorkerHandle]:
        """Return the workers that hold weights of this epoch."""
        return [worker for worker in self._pool.enrolled if worker.epoch == self.update_log.epoch]

    def _send(self, worker: WorkerHandle, request: Request, now: float) -> None:
        sync = self.update_log.sync(worker.epoch, worker.position, snapshots=not worker.plain)
        call = encode(Call(request.operation, request.arguments(worker), sync))
        self.statistics.bytes_sent += len(call)
        self._pool.send(worker, call, now)

    # ----------------------------------------------------------------------------------------- replies

    def _take(self, worker: WorkerHandle, raw: bytes | Exception, now: float) -> None:
        if isinstance(raw, Exception):
            self._lose(worker, cluster.message_of(raw), now)
            return
        self.statistics.bytes_received += len(raw)
        worker.replied = now
        request = self.scheduler.running.get(worker.name, ENROL)
        try:
            value: Any = None
            reply = decode(raw, Reply)
            if reply.error is None and not request.done:
                value = request.read(decode(reply.result, types_of(request.operation)["return"]))
        except MALFORMED as error:
            self._lose(worker, f"it gave a malformed reply ({error}): has it the same seedtune?", now)
            return
        worker.epoch, worker.position = reply.epoch, reply.position
        if reply.error is not None:
            worker.sent_texts = SentTexts()  # how much of the request the worker received is unknown
        if reply.behind:
            self.scheduler.release(worker.name)
        elif isinstance(reply.error, EngineError):
            self._lose(worker, str(reply.error), now)
        elif request is not ENROL:
            self._finish(worker, reply, value, now)
        elif reply.error is not None:
            self._refuse(worker, reply.error, now)
        else:
            self._enrol(worker, value, now)

    def _finish(self, worker: WorkerHandle, reply: Reply, value: Any, now: float) -> None:
        """Handle a worker's reply to a request."""
        request = self.scheduler.running[worker.name]
        worker.jobs, worker.busy = worker.jobs + 1, worker.busy + now - worker.sent
        span = Span(
            worker=worker.name,
            number=request.number,
            cost=request.cost,
            kind="late" if request.done else request.operation,
            sent=worker.sent,
            received=now,
            synced=reply.synced,
            worked=reply.worked,
            position=reply.position,
        )
        self.spans.append(span)
        self.statistics.add(span, reply)
        if request.cost:
            self._pool.settle(worker)
        if self.scheduler.finish(worker.name, now) is None:
            self.statistics.late += 1
        else:
            request.value, request.error = value, reply.error

    def _enrol(self, worker: WorkerHandle, about: Enrolment, now: float) -> None:
        """Enrol a worker that has loaded, if it computes and holds what the others do."""
        worker.pid, worker.host, worker.enrolled, worker.began = about.pid, about.host, True, worker.position
        objection = self.agreement.objection(worker.kind, about.info)
        if objection is not None:
            self._lose(worker, objection, now)
        else:
            self._pool.compute_by(worker.kind, recorded_arithmetic.kind(about.info.arithmetic))

    def _refuse(self, worker: WorkerHandle, error: SeedtuneError, now: float) -> None:
        """Handle a worker that could not load, which the user may have to fix."""
        if isinstance(error, StorageError) and not worker.plain and self.update_log.folder is None:
            worker.plain = True  # retry from the base model
            return
        self.refused = self.agreement.explained(worker.name, worker.kind, error)
        self._lose(worker, str(self.refused), now)

    # ------------------------------------------------------------------------------------------- losses

    def _lose(self, worker: WorkerHandle, why: str, now: float) -> None:
        """Remove a lost or unusable worker and give its work to others."""
        request = self.scheduler.running.get(worker.name)
        given_up = self.scheduler.fail(worker.name, why)
        self._pool.lose(worker, why, now)
        self.statistics.lost += 1
        if given_up is not None:
            self.statistics.given_up += 1
            self._pool.note(f"a job failed {self.settings.retries + 1} times and is given up; the last time: {why}")
        elif request is not None and not request.done:
            self.statistics.retried += 1

    def quarantine(self, worker: WorkerHandle, held: str, right: str | None) -> None:
        """Report and rebuild a worker whose weights differ from the others'."""
        others = f"those of most workers {right}" if right else "another worker's differ"
        self._lose(worker, f"its weights have fingerprint {held}, {others}", time.monotonic())

    def give_up(self, requests: Iterable[Request]) -> None:
        """Give up workers that take too long over a request of their own; leave alone those busy with a job."""
        for request in requests:
            self.scheduler.drop(request)
            for name in request.running.keys() & self._pool.workers.keys():
                self._lose(self._pool.workers[name], "it did not answer in time", time.monotonic())

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
            since = self.scheduler.running[name].running[name]
            self._lose(workers[name], f"no answer for {now - since:.0f} s", now)
        for worker in list(workers.values()):
            asked = worker.call is not None and worker.name not in self.scheduler.running
            limit = self.settings.straggler_timeout if worker.enrolled else self.settings.start_timeout
            if asked and now - worker.sent > limit:
                did = "answer" if worker.enrolled else "start"
                self._lose(worker, f"it did not {did} in {limit:g} s", now)
        if now - self._shown > STATUS_SECONDS and self.root.is_dir():
            self._shown = now
            requested = status_file.take_requested(self.root)
            if requested:
                self.scale(requested)
            status_file.show(self.root, self.status(now))
        self._check_alone(now)

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
        pool = self._pool
        if len(pool.enrolled) >= self.settings.min_workers:
            self._alone = None
            return
        self._alone = now if self._alone is None else self._alone
        waited, last = now - self._alone, (pool.notes[-1] if pool.notes else "none has started yet")
        if self.agreement.info is None and pool.lost >= TRIES:
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
        for name in list(pool.workers):
            self.scheduler.fail(name, "Ray is gone.")
        pool.workers.clear()
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
            "open": len(self.scheduler.open),
            "lost": pool.lost,
            "workers": [self._status_of(worker, now) for worker in pool.workers.values()],
            "notes": list(pool.notes),
        }

    def _status_of(self, worker: WorkerHandle, now: float) -> dict[str, Any]:
        request = self.scheduler.running.get(worker.name)
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
            "at_it": None if request is None else round(now - request.running[worker.name], 1),
        }

    def take_times(self) -> EngineTimes:
        """Return the times, figures and notes since the last call, and begin anew."""
        taken = self.statistics.times(0 if self.pool is None else len(self.pool.enrolled))
        self.statistics = Statistics()
        if self.pool is not None:
            taken.notes, self.pool.fresh_notes = self.pool.fresh_notes, []
        return taken

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        if self.pool is not None:
            for name in list(self.scheduler.running):
                self.scheduler.fail(name, "the engine was closed.")
            self.pool.close()
            self.pool = None
            status_file.clear(self.root)
        self.ray.close()
