"""Asynchronous runs: a generation uses the members that are finished, and the others count in a later generation.

A generation submits its jobs, then collects finished ones until all are there, or until the engine would idle: nothing
is queued and a worker has nothing to do.  Then half a population is enough, unless a job is already
``ray.max_staleness`` generations old: no update uses an older result.
The members that an update uses are recorded, so that replay and audit need no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from seedtune.errors import EngineError
from seedtune.rollouts.evaluator import Evaluator, Outcome, RolloutKey, keys_of
from seedtune.types import UNPERTURBED, Example, Job, Member, Plan, Rollout

Evaluate = Callable[[tuple[Member, ...], Sequence[Example], Plan], Outcome]
"""Returns the scores of the members, or of those that are finished."""

if TYPE_CHECKING:
    from seedtune.engines.ray.engine import RayEngine


def way_of(evaluator: Evaluator) -> Evaluate:
    """Return the configured evaluation: synchronous, or asynchronous if ``max_staleness`` is above 0."""
    if not evaluator.config.max_staleness:
        return evaluator.evaluate
    return Gathering(evaluator, cast("RayEngine", evaluator.engine), evaluator.config.max_staleness).evaluate


class Gathering:
    """Evaluate the generations of a run in order, with jobs that may stay open across generations."""

    def __init__(self, evaluator: Evaluator, engine: RayEngine, max_staleness: int) -> None:
        self.evaluator, self.engine, self.max_staleness = evaluator, engine, max_staleness
        self._ids = count()
        self._open: dict[int, Job] = {}
        self._examples: dict[int, tuple[Example, ...]] = {}

    def evaluate(self, members: tuple[Member, ...], examples: Sequence[Example], plan: Plan) -> Outcome:
        """Return the scores of the finished members, each on the prompts of the generation that submitted it.

        Members are ordered by generation, then by request; the prompts of each generation have separate columns.  The
        unperturbed model comes last, if requested, and has scores only if it answered in this generation, because
        that of an earlier generation is a different model.  Raises EngineError if no job could be evaluated.
        """
        now, jobs = plan.generation, self._submit(members, tuple(examples), plan)
        table, objective = _Table(jobs, self._examples, now), self.evaluator.config.objective
        rollouts = self._rollouts(table, plan)
        outcome = self.evaluator.score(table.keys(), table.examples, rollouts, objective=objective, after=now)
        if not outcome.rollouts:
            raise EngineError(
                f"none of the {len(jobs)} jobs of generation {now} could be evaluated. See what the workers say, "
                "then resume the run: nothing is lost."
            )
        kept = _Table([job for job in jobs if job.id not in self._open], self._examples, now)
        self._examples = {_asked_in(job): self._examples[_asked_in(job)] for job in self._open.values()}
        finished = kept.members()
        if UNPERTURBED in members and UNPERTURBED not in finished:
            finished = (*finished, UNPERTURBED)
        outcome = outcome.select(finished, [column for name in kept.columns for column in table.columns[name]])
        outcome.asked, outcome.staleness = kept.asked(finished), kept.staleness(self._open.values())
        return outcome

    def _submit(self, members: tuple[Member, ...], examples: tuple[Example, ...], plan: Plan) -> list[Job]:
        """Submit this generation's jobs and return all open jobs."""
        jobs = [replace(job, id=next(self._ids)) for job in self.evaluator.jobs(members, examples, plan)]
        kept = [job for job in self._open.values() if _perturbed(job)]
        self._open = {job.id: job for job in (*kept, *jobs)}
        self._examples[plan.generation] = examples
        self.engine.submit(jobs)
        return list(self._open.values())

    def _rollouts(self, table: _Table, plan: Plan) -> Iterator[Rollout]:
        """Yield the rollouts of finished jobs while this generation waits for more."""
        answered = 0
        while self._open and not (2 * answered >= len(plan.members) and self._may_go_on(plan.generation)):
            finished = self.engine.finished()
            assert finished is not None, "the engine lost a job"
            job = self._open.pop(finished.job, None)
            if job is not None:  # None for a job of only the unperturbed model of an earlier generation
                answered += _perturbed(job) if finished.rollouts else 0
                yield from table.placed(job, finished.rollouts)

    def _may_go_on(self, generation: int) -> bool:
        """Whether waiting would leave a worker idle and no open job would become too stale."""
        oldest = min(_asked_in(job) for job in self._open.values())
        return generation - oldest < self.max_staleness and self.engine.starving()


class _Table:
    """The rows and columns of the jobs' rollouts, with separate prompt columns for each generation."""

    def __init__(self, jobs: Sequence[Job], examples: Mapping[int, tuple[Example, ...]], now: int) -> None:
        self.jobs, self.now = jobs, now
        self.columns: dict[int, range] = {}
        self.examples: tuple[Example, ...] = ()
        for generation in dict.fromkeys(_asked_in(job) for job in jobs):
            first, self.examples = len(self.examples), self.examples + examples[generation]
            self.columns[generation] = range(first, len(self.examples))

    def members(self) -> tuple[Member, ...]:
        """Return the members whose rollouts count, in job order."""
        return tuple(member for job in self.jobs for member in self._counting(job))

    def keys(self) -> list[RolloutKey]:
        """Return the keys of all rollouts that count: every member's prompts and samples."""
        found: list[RolloutKey] = []
        for job in self.jobs:
            found += keys_of(self._counting(job), self.columns[_asked_in(job)], job.sampling.samples)
        return found

    def placed(self, job: Job, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return a job's rollouts that count, with their prompt indices converted to columns."""
        columns, counting = self.columns[_asked_in(job)], self._counting(job)
        return [replace(r, prompt=columns[r.prompt]) for r in rollouts if r.member in counting]

    def asked(self, members: Sequence[Member]) -> NDArray[np.bool_]:
        """Return a mask (members, prompts) of the requested evaluations."""
        row, asked = {m: index for index, m in enumerate(members)}, np.zeros((len(members), len(self.examples)), bool)
        for job in self.jobs:
            columns = self.columns[_asked_in(job)]
            asked[[row[member] for member in self._counting(job)], columns.start : columns.stop] = True
        return asked

    def staleness(self, still: Iterable[Job]) -> dict[str, float]:
        """Return metrics: generations between submission and use over members, and members of jobs ``still`` open."""
        ages = np.repeat([self.now - _asked_in(job) for job in self.jobs], [_perturbed(job) for job in self.jobs])
        waiting = sum(_perturbed(job) for job in still)
        return {"staleness/mean": float(ages.mean()), "staleness/max": int(ages.max()), "staleness/open": waiting}

    def _counting(self, job: Job) -> tuple[Member, ...]:
        """Return a job's members without the unperturbed model of an earlier generation."""
        return tuple(member for member in job.members if member.sign or _asked_in(job) == self.now)


def _asked_in(job: Job) -> int:
    return job.sampling.generation


def _perturbed(job: Job) -> int:
    """Return the number of perturbed members in a job."""
    return sum(bool(member.sign) for member in job.members)
