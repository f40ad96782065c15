"""What `simulation.py` simulates: times, jobs, workers and a driver, as plain values; and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from seedtune.config.sections import RaySettings

HOUR = 3600.0


class Seconds(Protocol):
    """How long an evaluation takes."""

    def draw(self, generator: np.random.Generator, cost: float) -> float:
        """Seconds of a job of ``cost`` rollouts."""
        ...


@dataclass(frozen=True, slots=True)
class Uniform:
    """Seconds of a rollout evenly between two bounds, one draw a job."""

    low: float
    high: float

    def draw(self, generator: np.random.Generator, cost: float) -> float:
        return cost * generator.uniform(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """``fixed`` seconds and ``mean`` for every rollout, times a factor of mean 1 with the spread of its logarithm."""

    mean: float
    spread: float
    fixed: float = 0.0

    def draw(self, generator: np.random.Generator, cost: float) -> float:
        return (self.fixed + cost * self.mean) * generator.lognormal(-0.5 * self.spread**2, self.spread)


@dataclass(frozen=True)
class Measured:
    """Seconds that jobs took, by their cost; a cost that was not measured scales those of the nearest."""

    seconds: dict[float, tuple[float, ...]]
    slower: float = 1.0

    def draw(self, generator: np.random.Generator, cost: float) -> float:
        known = min(self.seconds, key=lambda other: abs(other - cost))
        found = self.seconds[known]
        return found[generator.integers(len(found))] * cost / known * self.slower


@dataclass(frozen=True, slots=True)
class Piece:
    """A job: how many members, and how many rollouts they make together."""

    members: int
    cost: float


def population(members: int, *, group: int, rollouts: float = 1.0, unperturbed: bool = True) -> tuple[Piece, ...]:
    """A generation's jobs: members in fixed groups, each making ``rollouts``, and the unperturbed model by itself."""
    sizes = [min(group, members - first) for first in range(0, members, group)]
    alone = (Piece(0, rollouts),) if unperturbed else ()
    return (*(Piece(size, size * rollouts) for size in sizes), *alone)


@dataclass(frozen=True, slots=True)
class Workers:
    """How many, how fast, how they fail, and how they catch up."""

    count: int
    slowness: tuple[float, ...] = (1.0,)
    """Factors of the evaluation time, dealt out to the workers in turn."""
    failures: float = 0.0
    """Deaths of one worker per hour."""
    hangs: float = 0.0
    """Hangs of one worker per hour."""
    restart: float = 0.0
    """Seconds until a replacement has loaded the newest snapshot."""
    update: float = 0.0
    """Seconds of an update."""
    further: float = 0.0
    """Seconds of each further update in the same pass."""
    late: tuple[int, int] | None = None
    """(workers, generation): so many of them join only when that generation begins."""

    def catch_up(self, missed: int) -> float:
        """Seconds to apply so many updates in one pass."""
        return self.update + self.further * (missed - 1) if missed > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Driver:
    """What the driver costs, and how it works."""

    dispatch: float = 0.0
    """Seconds for each job."""
    collect: float = 0.0
    """Seconds for each rollout that arrives."""
    latency: float = 0.0
    between: float = 0.0
    """Seconds from a generation's last answer to the next one's first job."""
    static: bool = False
    """Jobs are dealt out before a generation begins."""
    max_staleness: int = 0
    save_steps: int = 25
    """Generations between two snapshots; 0: none."""
    look: float = 1.0
    """Seconds between two looks for overdue work and hanging workers."""
    settings: RaySettings = field(default_factory=lambda: RaySettings(retries=2))

    def missing(self, position: int) -> int:
        """Updates that one who reads the newest snapshot has to replay."""
        return position % self.save_steps if self.save_steps else position


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that a simulation depends on."""

    seconds: Seconds
    jobs: tuple[Piece, ...]
    workers: Workers
    driver: Driver = Driver()
    generations: int = 10
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it; shares are of all workers' time, or of the driver's."""

    elapsed: float
    utilisation: float
    """Share of the workers' time in which they evaluated, for nothing included."""
    generations_per_hour: float
    rollouts_per_second: float
    driver_busy: float
    lost: float
    """Share of the evaluation time whose result was dropped: deaths, and jobs that another finished first."""
    staleness: float
    """Updates between a job's generation and the one that takes its result, the mean over results."""
    counts: dict[str, int]
    """Jobs made, done, given_up and open at the end; results that came twice (doubled); deaths; hangs found."""
    joined: tuple[float, ...]
    """Seconds that each late worker replayed before its first job."""
    ends: tuple[float, ...]
    """When every generation's update was made."""
