"""Ray workers in miniature: the toy engine with workers, some of whom are late by a fixed schedule.  Nothing sleeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import runs
from seedtune.config.config import Config
from seedtune.engines.base import Finished
from seedtune.engines.toy.engine import ToyEngine
from seedtune.numerics.noise import Noise
from seedtune.types import Job, Rollout


@dataclass
class Schedule:
    """``late`` says how many other jobs are done before a job is, ``lost`` which jobs no worker can evaluate."""

    workers: int = 3
    late: Callable[[int], int] = lambda job: 0
    lost: Callable[[int], bool] = lambda job: False
    stop_at: int | None = None
    """Interrupt, as Ctrl-C does, instead of giving so many jobs back."""

    submitted: list[Job] = field(default_factory=list)
    answers: dict[int, tuple[Rollout, ...]] = field(default_factory=dict)
    """Every job's rollouts, whether they were used or not."""


class Straggling(ToyEngine):
    """A job is evaluated when a worker takes it, and given back when the schedule says."""

    def __init__(self, config: Config, noise: Noise, schedule: Schedule) -> None:
        super().__init__(config, noise=noise)
        self.schedule = schedule
        self.queue: list[Job] = []
        self.running: dict[int, int] = {}
        self.rollouts: dict[int, tuple[Rollout, ...]] = {}
        self.given = 0

    def submit(self, jobs: Sequence[Job]) -> None:
        self.schedule.submitted += jobs
        self.queue += jobs
        self._hand_out()

    def _hand_out(self) -> None:
        while self.queue and len(self.running) < self.schedule.workers:
            job = self.queue.pop(0)
            self.running[job.id] = self.schedule.late(job.id)
            self.rollouts[job.id] = () if self.schedule.lost(job.id) else tuple(self.evaluate([job]))
            self.schedule.answers[job.id] = self.rollouts[job.id]

    def finished(self) -> Finished | None:
        if not self.running:
            return None
        if self.given == self.schedule.stop_at:
            raise KeyboardInterrupt
        self.given += 1
        done = min(self.running, key=lambda job: (self.running[job], job))
        del self.running[done]
        self.running = {job: max(0, left - 1) for job, left in self.running.items()}
        self._hand_out()
        return Finished(done, self.rollouts.pop(done))

    def starving(self) -> bool:
        return not self.queue and len(self.running) < self.schedule.workers


SOME_ARE_LATE = {3: 4, 6: 9, 7: 2}
"""Of every ten jobs these are late, by so many others."""


def some_are_late(job: int) -> int:
    return SOME_ARE_LATE.get(job % 10, 0)


def config(root: Path, max_staleness: int, **settings) -> Config:
    """A toy run on Ray workers: five jobs a generation, the last one the unperturbed model alone."""
    small = {"generations": 8, "population": 8, "members_per_job": 2, **settings}
    fleet = {"engine": "ray", "ray": {"engine": "toy", "workers": 3, "max_staleness": max_staleness}}
    return runs.toy(root, **small).replace(**fleet)
