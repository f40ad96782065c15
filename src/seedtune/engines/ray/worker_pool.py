"""The pool of Ray workers: starts, replaces and ends workers."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedtune.config.config import Config
from seedtune.engines.codec import encode
from seedtune.engines.ray import cluster
from seedtune.engines.ray.cluster import Actor
from seedtune.engines.ray.protocol import SentTexts
from seedtune.engines.ray.worker_spec import WorkerSpec, needs_of
from seedtune.numerics.noise import Noise

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
    actor: Actor
    since: float = 0.0
    epoch: int = -1
    position: int = 0
    began: int = 0
    """The number of updates in its weights when it had loaded."""

    enrolled: bool = False
    plain: bool = False
    """Whether it failed to read a snapshot, and starts from the base model."""

    sent_texts: SentTexts = field(default_factory=SentTexts)
    pid: int | None = None
    host: str | None = None
    call: Any = None
    """The Ray reference of the pending reply."""

    sent: float = 0.0
    replied: float = 0.0
    jobs: int = 0
    busy: float = 0.0

    def take(self) -> bytes | Exception:
        """Take the reply that has come, or the error of the call."""
        import ray

        call, self.call = self.call, None
        try:
            reply: bytes = ray.get(call)
        except Exception as error:  # noqa: BLE001 - whatever it is, this worker will not answer
            return error
        return reply


class WorkerPool:
    """The workers by name.  Starts and ends processes, and passes bytes without interpreting them."""

    def __init__(self, config: Config, noise: Noise, gpus: float) -> None:
        """Take the ``gpus`` of the Ray cluster; no worker starts yet."""
        self.settings, self.target = config.ray, dict(config.ray.kinds)
        self.specs = {kind: WorkerSpec.of(config, noise, kind) for kind in self.target}
        self.needs = {kind: needs_of(config, kind, gpus) for kind in self.target}
        # Adopted workers are checked again when they enrol, including the products by which they compute.
        plain = encode([spec.with_products("auto") for _, spec in sorted(self.specs.items())])
        self.folder = str(Path(config.output_dir).resolve()).replace("/", "|")
        self.run = f"{self.folder} {hashlib.blake2b(plain, digest_size=8).hexdigest()}"
        self.workers: dict[str, WorkerHandle] = {}
        self.notes: deque[str] = deque(maxlen=NOTES)
        self.fresh_notes: list[str] = []
        self.lost = 0
        self._number = 0
        self._losses: dict[str, int] = {}
        self._lost_at: dict[str, float] = {}
        self._again: dict[str, float] = {}
        self._refused: dict[WorkerHandle, bytes | Exception] = {}

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
            actor = Actor.start(encode(self.specs[kind]), self.needs[kind], full)
        except Exception as error:  # noqa: BLE001 - the boundary: Ray raises whatever it likes
            self._again[kind] = now + LONG / 2
            self.note(f"Ray starts no worker: {cluster.message_of(error)}")
            return
        self.workers[name] = WorkerHandle(name, kind, actor, since=now)

    def adopt(self, now: float) -> None:
        """Adopt workers of this run that outlived the process that started them; they load as new ones do."""
        for full, actor in cluster.named(self.folder).items():
            run, _, name = full.rpartition("/")
            kind, _, number = name.rpartition("-")
            if run != self.run or kind not in self.target:  # of other settings: no longer usable
                actor.end()
                continue
            self._number = max(self._number, int(number) + 1)
            self.workers[name] = WorkerHandle(name, kind, actor, since=now)
        if self.workers:
            self.note(f"took over {len(self.workers)} workers that were there: {', '.join(self.workers)}")

    def compute_by(self, kind: str, products: str) -> None:
        """Set the products of the existing workers as the ones that later workers of this kind must use."""
        if products:
            self.specs[kind] = self.specs[kind].with_products(products)

    def lose(self, worker: WorkerHandle, why: str, now: float) -> None:
        """Remove a worker that is gone or unusable; another will replace it."""
        losses = 1 if worker.jobs else self._losses.get(worker.kind, 0) + 1
        self._losses[worker.kind], self._lost_at[worker.kind] = losses, now
        self._again[worker.kind] = now + min(LONG, SHORT * 2.0 ** (losses - 1))
        self.lost += 1
        place = "" if worker.pid is None else f" (process {worker.pid} on {worker.host})"
        self.note(f"worker {worker.name}{place} is lost: {why}")
        self.dismiss(worker)

    def dismiss(self, worker: WorkerHandle) -> None:
        """End a worker without a replacement, unless too few are left."""
        self.workers.pop(worker.name, None)
        worker.actor.end(worker.pid, worker.host)

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
            worker.call = worker.actor.call(request)
        except Exception as error:  # noqa: BLE001 - the boundary: Ray raises whatever it likes
            self._refused[worker] = error

    def wait(self, seconds: float) -> dict[WorkerHandle, bytes | Exception]:
        """Return replies, and errors of calls that failed, as soon as there is one."""
        import ray

        if self._refused:
            refused, self._refused = self._refused, {}
            return refused
        calls = {worker.call: worker for worker in self.workers.values() if worker.call is not None}
        if not calls:
            time.sleep(min(seconds, 0.05))
            return {}
        try:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=seconds)
            if done and len(calls) > 1:
                done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        except Exception as error:  # noqa: BLE001 - Ray is gone, and so are they all
            return dict.fromkeys(calls.values(), error)
        return {calls[call]: calls[call].take() for call in done}


def _least_use(worker: WorkerHandle) -> tuple[bool, int]:
    """Return the sort key for dismissal: workers that have not started come first, then the newest."""
    return worker.enrolled, -int(worker.name.rpartition("-")[2])
