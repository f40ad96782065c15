"""Ray workers for tests: workers of this process that answer in any order and fail on request, and one real Ray for
many."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seedtune import engines
from seedtune.config.config import Config
from seedtune.config.sections import RaySettings
from seedtune.engines.codec import encode
from seedtune.engines.ray import controller, worker_pool
from seedtune.engines.ray import engine as ray_engine
from seedtune.engines.ray.cluster import Cluster
from seedtune.engines.ray.engine import RayEngine
from seedtune.engines.ray.worker import Worker
from seedtune.engines.ray.worker_pool import WorkerHandle, WorkerPool
from waiting import BOUND, wait_until

Fault = Callable[[WorkerHandle, bytes, int], bytes | Exception | None]
"""Given a worker, a request and how many came before: what comes instead of an answer, or None."""


class Inline(WorkerPool):
    """Workers in this process, over the same bytes; replies come in a random order."""

    faults: tuple[Fault, ...] = ()
    seed = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rng = np.random.default_rng(self.seed)
        self.calls = 0
        self.silent: set[str] = set()
        """Workers that do not reply."""

    def _start(self, kind: str, now: float) -> None:
        name = f"{kind}-{self._number}"
        self._number += 1
        self.workers[name] = WorkerHandle(name, kind, Worker(encode(self.specs[kind])), since=now)

    def dismiss(self, worker: WorkerHandle) -> None:
        self.workers.pop(worker.name, None)

    def send(self, worker: WorkerHandle, request: bytes, now: float) -> None:
        worker.call, worker.sent = request, now

    def wait(self, seconds: float) -> dict[WorkerHandle, bytes | Exception]:
        asked = [worker for worker in self.workers.values() if worker.call is not None]
        waiting = [worker for worker in asked if worker.name not in self.silent]
        if not waiting:
            time.sleep(0.001)
            return {}
        worker = waiting[int(self.rng.integers(len(waiting)))]
        request, worker.call = worker.call, None
        self.calls += 1
        instead = next((fault(worker, request, self.calls) for fault in self.faults), None)
        return {worker: worker.actor.call(request) if instead is None else instead}


class InlineRayEngine(RayEngine):
    """A Ray engine that needs no Ray."""

    seed = 0
    faults: tuple[Fault, ...] = ()

    def _open(self) -> None:
        if self.controller.pool is None:
            chosen = type("Chosen", (Inline,), {"seed": self.seed, "faults": self.faults})
            self.controller.pool = chosen(self.config, self.noise, 0.0)


@contextmanager
def inline(*, seed: int = 0, fault: Fault | None = None) -> Iterator[None]:
    """While open, Ray engines are made that need no Ray; lost workers are replaced at once."""
    chosen = type("Chosen", (InlineRayEngine,), {"seed": seed, "faults": () if fault is None else (fault,)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.ENGINES, "ray", lambda config, noise: chosen(config, noise=noise))
        patch.setattr(worker_pool, "SHORT", 0.0)
        yield


def count_readings(patch: pytest.MonkeyPatch) -> None:
    """Give Ray engines a clock that goes on by a millisecond when it is read: no other process delays a worker."""
    readings = count()
    clock = SimpleNamespace(monotonic=lambda: next(readings) / 1000)
    patch.setattr(controller, "time", SimpleNamespace(**vars(time) | vars(clock)))
    patch.setattr(ray_engine, "time", clock)


def ray_config(folder: Path, **settings: Any) -> Config:
    """Settings of a toy run by two Ray workers."""
    ray = {"engine": "toy", "workers": 2, **settings.pop("ray", {})}
    return Config.create(
        {
            "task": "toy",
            "model": "base",
            "output_dir": str(folder),
            "engine": "ray",
            "ray": ray,
            "generations": 8,
            "population": 16,
            "members_per_job": 4,
            "prompts_per_generation": 4,
            "sigma": 0.05,
            "toy": {"size": 6},
            "fingerprint_steps": 2,
            "save_steps": 3,
            **settings,
        }
    )


def alone(config: Config, folder: Path) -> Config:
    """The same run in this process."""
    return config.replace(engine=config.ray.engine, output_dir=str(folder), members_per_job=config.group)


def maker(**settings: Any) -> Callable[[], RayEngine]:
    """Makes inline Ray engines of toy engines, all of the same base model and run seed, not yet loaded."""
    config = ray_config(Path("nowhere"), seed=7, **settings)
    return lambda: InlineRayEngine(config, noise=engines.noise_of(config))


@contextmanager
def ray_here() -> Iterator[None]:
    """One Ray for many engines, with room for many workers."""
    cluster = Cluster(RaySettings(workers=8))
    cluster.connect()
    try:
        yield
    finally:
        cluster.close()


class At:
    """Does something when a generation is done."""

    def __init__(self, generation: int, act: Callable[[], Any]) -> None:
        self.generation, self.act = generation, act

    def on_start(self, *_):
        pass

    on_evaluate = on_end = on_start

    def on_generation(self, metrics):
        if metrics["generation"] == self.generation:
            self.act()


def turn_until(engine: RayEngine, happened: Callable[[], object], *, seconds: float = BOUND) -> None:
    """From a callback of its run: have the driver go on looking after workers until something happened."""
    wait_until(happened, turn=engine.controller.turn, seconds=seconds)


class Attacker(threading.Thread):
    """Does something to Ray workers at random instants, as often as asked, while it trains."""

    def __init__(
        self, engine: Callable[[], RayEngine | None], act: Callable[[int], None], *, times: int, seed: int
    ) -> None:
        super().__init__(daemon=True)
        self.engine, self.act, self.times = engine, act, times
        self.rng = np.random.default_rng(seed)
        self.done: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        while len(self.done) < self.times and not self.over.is_set():
            time.sleep(float(self.rng.uniform(0.0, 0.5)))
            engine = self.engine()
            pool = None if engine is None else engine.controller.pool
            workers = [] if pool is None else [worker for worker in list(pool.workers.values()) if worker.enrolled]
            if len(workers) < 2:
                continue
            pid = workers[int(self.rng.integers(len(workers)))].pid
            if pid is not None and pid not in self.done and os.path.exists(f"/proc/{pid}"):
                self.act(pid)
                self.done.append(pid)
