"""How fast something is, measured: the configured engine for a few tokens, or a run that was."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines.base import Engine, EngineTimes
from seedtune.errors import RunError
from seedtune.rollouts.prompts import prompt_of
from seedtune.run import directory, recorded_config
from seedtune.strategies import populations
from seedtune.tasks.base import Task
from seedtune.types import Job, Member, Sampling, Term, Update
from seedtune.workload import Workload

GENERATION = 2**31 + 1
"""Noise of no training generation and no probe."""

NEW = 9
"""Tokens decoded for a measurement."""

QUARTER = 4
"""The second measurement has a quarter of the members: what a step costs whatever its rows, and what each row adds."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of this engine: a prompt token, a decode step and a row in it, perturbing, and an update."""

    prompt_token: float
    step: float
    row: float
    perturb: float
    """All of a generation's perturbing."""
    update: float


@dataclass(frozen=True, slots=True)
class Pace:
    """A run as it was: seconds per token read or written, and new tokens of a completion."""

    token: float
    new_tokens: float
    generations: int


def measure_engine(config: Config, task: Task, work: Workload) -> Speed:
    """Load the engine, let the population write a few tokens, update once, and let go of it.

    Attention over a long context is not in it: the tokens are the first of a completion.
    """
    with closing(engines.create(config)) as engine:
        engine.load()
        steps = min(NEW, config.max_completion_length) - 1
        few = _members(work, 1 if work.alone else -(-work.members // QUARTER))
        full = few if work.alone else _members(work, min(work.members, max(1, work.slots // work.prompts)))
        other = Member(GENERATION, work.members, 1)
        _answer(engine, config, task, ((other,), work.prompts))  # what compiles on first use does so here
        small = _answer(engine, config, task, (few, work.prompts))
        large = small if work.alone else _answer(engine, config, task, (full, work.prompts))
        update = [_moved(engine, config) for _ in range(2)][1]
    step, row = _line(*((t.decode / max(1, steps), len(m) * work.prompts) for t, m in ((small, few), (large, full))))
    return Speed(
        prompt_token=large.prefill / max(1, large.prompt_tokens),
        step=step,
        row=row,
        perturb=large.perturb * (work.members / len(full)),
        update=update,
    )


def _members(work: Workload, count: int) -> tuple[Member, ...]:
    return tuple(Member(GENERATION, pair // 2, -1 if pair % 2 else 1) for pair in range(count))


def _answer(engine: Engine, config: Config, task: Task, size: tuple[tuple[Member, ...], int]) -> EngineTimes:
    """The times of ``members`` that answer ``prompts`` prompts with a few tokens, stop tokens passed over."""
    members, prompts = size
    how = Sampling(min(NEW, config.max_completion_length), ignore_eos=True)
    engine.take_times()
    job = Job(0, config.sigma, members, tuple(prompt_of(config, e) for e in task.train[:prompts]), how)
    for _ in engine.evaluate([job]):
        pass
    return engine.take_times()


def _moved(engine: Engine, config: Config) -> float:
    """Seconds of an update of a generation's size; of no account, for the engine is let go."""
    pairs = max(populations(config)) // (2 if config.antithetic else 1)
    engine.apply(Update(GENERATION, tuple(Term(GENERATION, pair, 1e-12) for pair in range(pairs))))
    return engine.take_times().update


def _line(small: tuple[float, int], large: tuple[float, int]) -> tuple[float, float]:
    """Seconds of a step without rows, and of each row, from (seconds, rows) of two sizes; neither is negative."""
    (first, rows), (second, many) = small, large
    if many <= rows:
        return second, 0.0
    row = min(max(0.0, (second - first) / (many - rows)), second / many)
    return second - row * many, row


def pace_of(run: Path) -> Pace:
    """What a run took per token; RunError if it has no generation to measure."""
    config = recorded_config.run_config(run)
    rows = [row for row in directory.read_lines(directory.RunPaths(run).metrics) if "step_time" in row]
    tokens = sum(row["num_tokens"] for row in rows)
    if not rows or tokens == 0:
        raise RunError(f"{run} has no measured generation yet. Let it finish one, or leave --measured out.")
    lengths = [row["completions/mean_length"] for row in rows]
    return Pace(
        token=sum(row["step_time"] for row in rows) / tokens,
        new_tokens=min(sum(lengths) / len(lengths), float(config.max_completion_length)),
        generations=len(rows),
    )
