"""Asynchronous runs: a generation takes the members that are there, and the others come with a later one.

A generation's jobs are submitted; then those that are done are collected until everything is there, or until an engine
would stand still: nothing is queued and a worker has nothing to do.  Then half a population is enough, unless a job is
already ``ray.max_staleness`` generations old: no update takes a result that is older.
What an update takes is recorded, so
that replay and audit need no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from seedtune.config.config import Config
from seedtune.engines.base import Streaming
from seedtune.errors import ConfigError, EngineError
from seedtune.rollouts.evaluator import Evaluator, Outcome, RolloutKey, ScoredRollouts, places_of
from seedtune.tasks.base import Task
from seedtune.tasks.reference_answers import scores_itself
from seedtune.types import UNPERTURBED, Example, Job, Member, Plan, Rollout


class Evaluate(Protocol):
    """How a generation is evaluated."""

    def __call__(self, members: tuple[Member, ...], examples: Sequence[Example], *, plan: Plan) -> Outcome:
        """Scores of these members, or of those that are there."""
        ...


def way_of(evaluator: Evaluator) -> Evaluate:
    """The way the configuration asks for: every generation whole, or what is there."""
    if not evaluator.config.max_staleness:
        return evaluator.evaluate
    return Gathering(evaluator, cast(Streaming, evaluator.engine), evaluator.config.max_staleness).evaluate


def check(config: Config, task: Task) -> None:
    """ConfigError if an asynchronous run cannot evaluate a task."""
    if config.max_staleness and (task.environment is not None or scores_itself(task)):
        what = "is a conversation" if task.environment is not None else "generates nothing"
        raise ConfigError(
            f"ray.max_staleness={config.max_staleness} is for single completions, but task {task.name!r} {what}. "
            "Use ray.max_staleness=0."
        )


class Gathering:
    """Evaluates the generations of a run one after the other, with jobs that stay open across them."""

    def __init__(self, evaluator: Evaluator, engine: Streaming, max_staleness: int) -> None:
        self.evaluator, self.engine, self.max_staleness = evaluator, engine, max_staleness
        self._ids = count()
        self._open: dict[int, Job] = {}
        self._examples: dict[int, tuple[Example, ...]] = {}

    def evaluate(self, members: tuple[Member, ...], examples: Sequence[Example], *, plan: Plan) -> Outcome:
        """The members that are there, by generation and then as asked, each scored on its own generation's prompts.

        The prompts of every generation have columns of their own.  The unperturbed model comes last, if it was asked
        for, and has scores if it answered in time: that of an earlier generation is another model.
        """
        now, jobs = plan.generation, self._submit(members, tuple(examples), plan)
        table = _Table(jobs, self._examples, now)
        answers = self.evaluator.score(table.places(), table.examples, self._rollouts(table, plan), after=now)
        if not answers.rollouts:
            raise EngineError(
                f"none of the {len(jobs)} jobs of generation {now} could be evaluated. See what the workers say, "
                "then resume the run: nothing is lost."
            )
        kept = _Table([job for job in jobs if job.id not in self._open], self._examples, now)
        self._examples = {_asked_in(job): self._examples[_asked_in(job)] for job in self._open.values()}
        outcome = self._outcome(kept, table.moved(answers, kept), UNPERTURBED in members)
        outcome.staleness = kept.staleness(self._open.values())
        return outcome

    def _submit(self, members: tuple[Member, ...], examples: tuple[Example, ...], plan: Plan) -> list[Job]:
        """All jobs that are open now, those of this generation among them."""
        jobs = [replace(job, id=next(self._ids)) for job in self.evaluator.jobs(members, examples, plan)]
        kept = [job for job in self._open.values() if _perturbed(job)]
        self._open = {job.id: job for job in (*kept, *jobs)}
        self._examples[plan.generation] = examples
        self.engine.submit(jobs)
        return list(self._open.values())

    def _rollouts(self, table: _Table, plan: Plan) -> Iterator[Rollout]:
        """Rollouts of jobs as they are done, for as long as this generation waits for more."""
        answered = 0
        while self._open and not (2 * answered >= len(plan.members) and self._may_go_on(plan.generation)):
            finished = self.engine.finished()
            assert finished is not None, "the engine lost a job"
            job = self._open.pop(finished.job, None)
            if job is not None:  # it is not, if it was the unperturbed model of an earlier generation alone
                answered += _perturbed(job) if finished.rollouts else 0
                yield from table.placed(job, finished.rollouts)

    def _may_go_on(self, generation: int) -> bool:
        """Whether waiting would waste a worker's time, and what is open may come with a later generation."""
        oldest = min(_asked_in(job) for job in self._open.values())
        return generation - oldest < self.max_staleness and self.engine.starving()

    def _outcome(self, kept: _Table, answers: ScoredRollouts, unperturbed: bool) -> Outcome:
        members = kept.members()
        if unperturbed and UNPERTURBED not in members:
            members = (*members, UNPERTURBED)
        outcome = self.evaluator.outcome(members, kept.examples, answers, self.evaluator.config.objective)
        outcome.asked = kept.asked(members)
        return outcome


class _Table:
    """Where the answers of jobs belong: the prompts of every generation have columns of their own."""

    def __init__(self, jobs: Sequence[Job], examples: Mapping[int, tuple[Example, ...]], now: int) -> None:
        self.jobs, self.now = jobs, now
        self.columns: dict[int, range] = {}
        self.examples: tuple[Example, ...] = ()
        for generation in dict.fromkeys(_asked_in(job) for job in jobs):
            first, self.examples = len(self.examples), self.examples + examples[generation]
            self.columns[generation] = range(first, len(self.examples))

    def members(self) -> tuple[Member, ...]:
        """Whose answers count, in the order of the jobs."""
        return tuple(member for job in self.jobs for member in self._counting(job))

    def places(self) -> list[RolloutKey]:
        """Every member's prompts and samples."""
        found: list[RolloutKey] = []
        for job in self.jobs:
            found += places_of(self._counting(job), self.columns[_asked_in(job)], job.sampling.samples)
        return found

    def placed(self, job: Job, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """A job's rollouts that count, their prompts as columns."""
        columns, counting = self.columns[_asked_in(job)], self._counting(job)
        return [replace(r, prompt=columns[r.prompt]) for r in rollouts if r.member in counting]

    def moved(self, answers: ScoredRollouts, other: _Table) -> ScoredRollouts:
        """The same answers in the columns of another table, which has all their generations."""
        pairs = [zip(self.columns[name], columns, strict=True) for name, columns in other.columns.items()]
        column = dict(pair for pairs_of_one in pairs for pair in pairs_of_one)
        return replace(answers, rollouts=[replace(r, prompt=column[r.prompt]) for r in answers.rollouts])

    def asked(self, members: Sequence[Member]) -> NDArray[np.bool_]:
        """(members, prompts): who was to answer what."""
        row, asked = {m: index for index, m in enumerate(members)}, np.zeros((len(members), len(self.examples)), bool)
        for job in self.jobs:
            columns = self.columns[_asked_in(job)]
            asked[[row[member] for member in self._counting(job)], columns.start : columns.stop] = True
        return asked

    def staleness(self, still: Iterable[Job]) -> dict[str, float]:
        """Generations between asking and use, over the members, and how many of the jobs ``still`` open there are."""
        ages = np.repeat([self.now - _asked_in(job) for job in self.jobs], [_perturbed(job) for job in self.jobs])
        waiting = sum(_perturbed(job) for job in still)
        return {"staleness/mean": float(ages.mean()), "staleness/max": int(ages.max()), "staleness/open": waiting}

    def _counting(self, job: Job) -> tuple[Member, ...]:
        """A job's members, but for the unperturbed model of an earlier generation."""
        return tuple(member for member in job.members if member.sign or _asked_in(job) == self.now)


def _asked_in(job: Job) -> int:
    return job.sampling.generation


def _perturbed(job: Job) -> int:
    """How many members of the population a job has."""
    return sum(bool(member.sign) for member in job.members)
