"""The pool of Ray workers: starts, replaces and ends workers."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from seedtune.config.sections import RaySettings
from seedtune.engines.ray import cluster
from seedtune.engines.ray.protocol import Known
from seedtune.engines.ray.worker_spec import with_products

log = logging.getLogger("seedtune")

SHORT, LONG = 1.0, 60.0
"""Minimum and maximum seconds before a lost worker is replaced; doubled for each that never finished a job."""

NOTES = 20
"""Maximum events kept."""


@dataclass(slots=True, eq=False)
class WorkerHandle:
    """A worker as the driver knows it; ``kind`` is its engine."""

    name: str
    kind: str
    actor: Any
    group: Any = None
    since: float = 0.0
    epoch: int = -1
    position: int = 0
    began: int = 0
    """The number of updates in its weights when it had loaded."""

    enrolled: bool = False
    plain: bool = False
    """Whether it failed to read a snapshot, and starts from the base model."""

    known: Known = field(default_factory=Known)
    pid: int | None = None
    host: str | None = None
    call: Any = None
    """The Ray reference of the pending reply."""

    sent: float = 0.0
    heard: float = 0.0
    jobs: int = 0
    busy: float = 0.0


class WorkerPool:
    """The workers by name.  Starts and ends processes, and passes bytes without interpreting them."""

    def __init__(
        self, settings: RaySettings, specs: Mapping[str, bytes], needs: Mapping[str, Mapping[str, Any]], *, run: str
    ) -> None:
        """Take ``specs``, the start data of each kind of worker, and ``needs``, its Ray resources.

        ``run`` names the run that the workers belong to, if they may outlive this process.
        """
        # Adopted workers are checked again when they enrol, including the products by which they compute.
        plain = {kind: with_products(spec, "auto") for kind, spec in specs.items()}
        told = "".join(f"{kind} {spec.hex()}" for kind, spec in sorted(plain.items()))
        self.run = f"{run} {hashlib.blake2b(told.encode(), digest_size=8).hexdigest()}"
        self.settings, self.specs, self.needs = settings, dict(specs), needs
        self.target = dict(settings.kinds)
        self.workers: dict[str, WorkerHandle] = {}
        self.notes: deque[str] = deque(maxlen=NOTES)
        self.fresh_notes: list[str] = []
        self.lost = 0
        self._number = 0
        self._losses: dict[str, int] = {}
        self._lost_at: dict[str, float] = {}
        self._again: dict[str, float] = {}

    # ------------------------------------------------------------------ as many as there should be

    def tend(self, now: float) -> None:
        """Start missing workers and dismiss surplus idle ones."""
        for kind, wanted in self.target.items():
            mine = [worker for worker in self.workers.values() if worker.kind == kind]
            if len(mine) < wanted and now >= self._again.get(kind, 0.0):
                for _ in range(wanted - len(mine)):
                    self._start(kind, now)
            for worker in sorted(mine, key=_least_use)[: max(0, len(mine) - wanted)]:
                if worker.call is None or not worker.enrolled:
                    self.dismiss(worker)

    def _start(self, kind: str, now: float) -> None:
        name = f"{kind}-{self._number}"
        self._number += 1
        full = f"{self.run}/{name}" if self.settings.detached else None
        try:
            actor, group = launch(self.specs[kind], self.needs[kind], full)
        except Exception as error:  # noqa: BLE001 - the boundary: Ray raises whatever it likes
            self._again[kind] = now + LONG / 2
            self.note(f"Ray starts no worker: {cluster.said(error)}")
            return
        self.workers[name] = WorkerHandle(name, kind, actor, group, since=now)

    def adopt(self, now: float) -> None:
        """Adopt workers of this run that outlived the process that started them; they load as new ones do."""
        for full, actor in cluster.named(self.run.rpartition(" ")[0]):
            run, _, name = full.rpartition("/")
            kind, _, number = name.rpartition("-")
            if run != self.run or kind not in self.target:  # of other settings: no longer usable
                cluster.end(actor, None, None)
                continue
            self._number = max(self._number, int(number) + 1)
            self.workers[name] = WorkerHandle(name, kind, actor, cluster.group_of(full), since=now)
        if self.workers:
            self.note(f"took over {len(self.workers)} workers that were there: {', '.join(self.workers)}")

    def compute_by(self, kind: str, products: str) -> None:
        """Set the products of the existing workers as the ones that later workers of this kind must use."""
        if products:
            self.specs[kind] = with_products(self.specs[kind], products)

    def lose(self, worker: WorkerHandle, why: str, now: float) -> None:
        """Remove a worker that is gone or unusable; another will replace it."""
        losses = 1 if worker.jobs else self._losses.get(worker.kind, 0) + 1
        self._losses[worker.kind], self._lost_at[worker.kind] = losses, now
        self._again[worker.kind] = now + min(LONG, SHORT * 2.0 ** (losses - 1))
        self.lost += 1
        self.note(f"worker {worker.name}{_place(worker)} is lost: {why}")
        self.dismiss(worker)

    def dismiss(self, worker: WorkerHandle) -> None:
        """End a worker without a replacement, unless too few are left."""
        self.workers.pop(worker.name, None)
        cluster.end(worker.actor, worker.pid, worker.host)
        if worker.group is not None:
            cluster.ungroup(worker.group)

    def settle(self, worker: WorkerHandle) -> None:
        """Reset the count of losses in a row: a worker that came after the last loss has proved that it works."""
        if worker.since >= self._lost_at.get(worker.kind, 0.0):
            self._losses[worker.kind] = 0

    def note(self, what: str) -> None:
        """Record an event to show to the user."""
        log.info("%s", what)
        self.notes.append(f"{time.strftime('%H:%M:%S')} {what}")
        self.fresh_notes.append(what)

    def close(self) -> None:
        """End all workers."""
        for worker in list(self.workers.values()):
            self.dismiss(worker)

    # ------------------------------------------------------------------------------------ calls

    def idle(self) -> list[WorkerHandle]:
        """Return the workers without a pending reply."""
        return [worker for worker in self.workers.values() if worker.call is None]

    @property
    def enrolled(self) -> list[WorkerHandle]:
        """Return the workers that have loaded a model."""
        return [worker for worker in self.workers.values() if worker.enrolled]

    def send(self, worker: WorkerHandle, request: bytes, now: float) -> None:
        """Send a request to a worker; if Ray refuses it, its error becomes the reply."""
        worker.sent = now
        try:
            worker.call = worker.actor.call.remote(request)
        except Exception as error:  # noqa: BLE001 - the boundary: Ray raises whatever it likes
            worker.call = error

    def wait(self, seconds: float) -> list[tuple[WorkerHandle, bytes | Exception]]:
        """Return replies, and errors of calls that failed, as soon as there is one."""
        ray = cluster.require()
        untaken = [worker for worker in self.workers.values() if isinstance(worker.call, Exception)]
        if untaken:
            found = [(worker, worker.call) for worker in untaken]
            for worker in untaken:
                worker.call = None
            return found
        calls = {worker.call: worker for worker in self.workers.values() if worker.call is not None}
        if not calls:
            time.sleep(min(seconds, 0.05))
            return []
        try:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=seconds)
            if done and len(calls) > 1:
                done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        except Exception as error:  # noqa: BLE001 - Ray is gone, and so are they all
            return [(worker, error) for worker in calls.values()]
        return self._taken(done, calls)

    def _taken(
        self, done: list[Any], calls: Mapping[Any, WorkerHandle]
    ) -> list[tuple[WorkerHandle, bytes | Exception]]:
        ray = cluster.require()
        found: list[tuple[WorkerHandle, bytes | Exception]] = []
        for call in done:
            worker = calls[call]
            worker.call = None
            try:
                found.append((worker, ray.get(call)))
            except Exception as error:  # noqa: BLE001 - whatever it is, this worker will not answer
                found.append((worker, error))
        return found


def launch(spec: bytes, needs: Mapping[str, Any], kept: str | None) -> tuple[Any, Any]:
    """Start an actor, with a placement group if it needs several GPUs; with a name both outlive this process."""
    ray = cluster.require()
    from seedtune.engines.ray.worker import Worker

    how = {**needs, "max_restarts": 0, "max_task_retries": 0}
    if kept is not None:
        how |= {"name": kept, "lifetime": "detached", "namespace": cluster.NAMESPACE}
    group = None
    if how.get("num_gpus", 0) > 1:
        group, how["scheduling_strategy"] = cluster.grouped(how, kept)
    return ray.remote(Worker).options(**how).remote(spec), group


def _place(worker: WorkerHandle) -> str:
    return "" if worker.pid is None else f" (process {worker.pid} on {worker.host})"


def _least_use(worker: WorkerHandle) -> tuple[bool, int]:
    """Return the sort key for dismissal: workers that have not started come first, then the newest."""
    return worker.enrolled, -int(worker.name.rpartition("-")[2])
