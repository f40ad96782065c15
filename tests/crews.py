"""Fleets for tests: workers of this process that answer in any order and fail on request, and one real Ray for many."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seedtune import engines
from seedtune.config.config import Config
from seedtune.config.sections import FleetSettings
from seedtune.engines.ray import worker_pool as crews
from seedtune.engines.ray.cluster import Cluster
from seedtune.engines.ray.engine import FleetEngine
from seedtune.engines.ray.worker import Worker
from seedtune.engines.ray.worker_pool import Crew, Hand
from waiting import wait_until

Fault = Callable[[Hand, bytes, int], bytes | Exception | None]
"""Given a worker, a request and how many came before: what comes instead of an answer, or None."""


class Inline(Crew):
    """Workers in this process, over the same bytes; replies come in a random order."""

    faults: tuple[Fault, ...] = ()
    seed = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.rng = np.random.default_rng(self.seed)
        self.calls = 0

    def _start(self, kind: str, now: float) -> None:
        name = f"{kind}-{self._number}"
        self._number += 1
        self.hands[name] = Hand(name, kind, Worker(self.specs[kind]), since=now)

    def dismiss(self, hand: Hand) -> None:
        self.hands.pop(hand.name, None)

    def send(self, hand: Hand, request: bytes, now: float) -> None:
        hand.call, hand.sent = request, now

    def wait(self, seconds: float) -> list[tuple[Hand, bytes | Exception]]:
        waiting = [hand for hand in self.hands.values() if hand.call is not None]
        if not waiting:
            time.sleep(0.001)
            return []
        hand = waiting[int(self.rng.integers(len(waiting)))]
        request, hand.call = hand.call, None
        self.calls += 1
        instead = next((fault(hand, request, self.calls) for fault in self.faults), None)
        return [(hand, hand.actor.call(request) if instead is None else instead)]


class InlineFleet(FleetEngine):
    """A fleet that needs no Ray."""

    seed = 0
    faults: tuple[Fault, ...] = ()

    def _open(self) -> None:
        if self.foreman.crew is None:
            chosen = type("Chosen", (Inline,), {"seed": self.seed, "faults": self.faults})
            self.foreman.crew = self._crew(chosen, 0.0)


@contextmanager
def inline(*, seed: int = 0, fault: Fault | None = None) -> Iterator[None]:
    """While open, fleets are made that need no Ray; lost workers are replaced at once."""
    chosen = type("Chosen", (InlineFleet,), {"seed": seed, "faults": () if fault is None else (fault,)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engines.ENGINES, "fleet", lambda config, noise: chosen(config, noise=noise))
        patch.setattr(crews, "SHORT", 0.0)
        yield


def fleet(folder: Path, **settings: Any) -> Config:
    """Settings of a toy run by a fleet of two."""
    told = {"engine": "toy", "workers": 2, **settings.pop("fleet", {})}
    return Config.create(
        {
            "task": "toy",
            "model": "base",
            "output_dir": str(folder),
            "engine": "fleet",
            "fleet": told,
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
    return config.replace(engine=config.fleet.engine, output_dir=str(folder), members_per_job=config.group)


def maker(**how: Any) -> Callable[[], FleetEngine]:
    """Makes inline fleets of the toy engine, all of the same base model and run seed, not yet loaded."""
    config = fleet(Path("nowhere"), seed=7, **how)
    return lambda: InlineFleet(config, noise=engines.noise_of(config))


@contextmanager
def ray_here() -> Iterator[None]:
    """One Ray for many fleets, with room for many workers."""
    cluster = Cluster(FleetSettings(workers=8))
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

    def on_generation(self, told):
        if told["generation"] == self.generation:
            self.act()


def turn_until(engine: FleetEngine, happened: Callable[[], object]) -> None:
    """From a callback of its run: have the fleet's driver go on looking after workers until something happened."""
    wait_until(happened, turn=engine.foreman.turn)


class Attacker(threading.Thread):
    """Does something to a fleet's workers at random instants, as often as asked, while it trains."""

    def __init__(
        self, engine: Callable[[], FleetEngine | None], act: Callable[[int], None], *, times: int, seed: int
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
            crew = None if engine is None else engine.foreman.crew
            hands = [] if crew is None else [hand for hand in list(crew.hands.values()) if hand.enrolled]
            if len(hands) < 2:
                continue
            pid = hands[int(self.rng.integers(len(hands)))].pid
            if pid is not None and pid not in self.done and os.path.exists(f"/proc/{pid}"):
                self.act(pid)
                self.done.append(pid)
