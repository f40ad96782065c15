"""Evaluate members on examples: send jobs to the engine, score the rollouts, and collect the scores in a matrix."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from seedtune import activities
from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.rewards.base import Reward, total
from seedtune.rewards.scorer import Completion, Scorer
from seedtune.rollouts import likelihoods
from seedtune.rollouts.conversations import Conversations
from seedtune.rollouts.objectives import OBJECTIVES, VOTING
from seedtune.rollouts.prompts import prompt_of, sampling_of
from seedtune.tasks.base import Task
from seedtune.tasks.reference_answers import scores_itself
from seedtune.types import UNPERTURBED, Example, Job, Member, Plan, Rollout


class RolloutKey(NamedTuple):
    """A rollout by its member, prompt index and sample index."""

    member: Member
    prompt: int
    sample: int


@dataclass(slots=True)
class Outcome:
    """The scores of an evaluation, and its rollouts with their rewards, ordered by member.

    ``scores`` (members, prompts) aggregate the weighted sum of the rewards; ``by_reward`` (rewards, members, prompts)
    holds the unweighted scores of each reward, in the task's order.  NaN where nothing was scored.  ``rewards`` and
    ``by_function`` have a value per rollout; ``failed`` counts the rollouts on which each reward function failed.
    """

    members: tuple[Member, ...]
    examples: tuple[Example, ...]
    scores: NDArray[np.float64]
    by_reward: NDArray[np.float64]
    rollouts: list[Rollout]
    rewards: list[float]
    by_function: dict[str, list[float]]
    failed: dict[str, int]
    logged: dict[Completion, dict[str, Any]] = field(default_factory=dict)
    """Values that reward functions logged for completions, by column."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Means of the metrics that reward functions logged, as ``rewards/<function>/<name>``."""

    seconds: dict[str, float] = field(default_factory=dict)
    asked: NDArray[np.bool_] | None = None
    """(members, prompts): the requested evaluations; None: all."""

    staleness: dict[str, float] = field(default_factory=dict)
    """Staleness metrics of an asynchronous run, see `seedtune.rollouts.asynchronous`."""

    @property
    def perturbed(self) -> tuple[Member, ...]:
        """The members without the unperturbed one."""
        return tuple(member for member in self.members if member.sign)

    def of(self, member: Member) -> list[tuple[Rollout, float]]:
        """Return a member's rollouts with their rewards."""
        return [(r, reward) for r, reward in zip(self.rollouts, self.rewards, strict=True) if r.member == member]

    def row(self, member: Member) -> NDArray[np.float64]:
        """Return a member's scores, shape (prompts,)."""
        scores: NDArray[np.float64] = self.scores[self.members.index(member)]
        return scores

    def select(self, members: tuple[Member, ...], columns: Sequence[int]) -> Outcome:
        """Return the outcome of these members and prompts; no other prompt may have a rollout."""
        row = {member: index for index, member in enumerate(self.members)}
        rows, place = [row[member] for member in members], {column: index for index, column in enumerate(columns)}
        return replace(
            self,
            members=members,
            examples=tuple(self.examples[column] for column in columns),
            scores=self.scores[rows][:, columns],
            by_reward=self.by_reward[:, rows][:, :, columns],
            rollouts=[replace(rollout, prompt=place[rollout.prompt]) for rollout in self.rollouts],
        )


class Evaluator:
    """Run jobs on an engine and score the rollouts with the task's rewards as they arrive."""

    def __init__(self, engine: Engine, task: Task, config: Config, scorer: Scorer | None = None) -> None:
        self.engine, self.task, self.config = engine, task, config
        self.scorer = Scorer(task.rewards, config) if scorer is None else scorer

    def evaluate(self, members: tuple[Member, ...], examples: Sequence[Example], plan: Plan) -> Outcome:
        """Let every member answer every example, with the generation, σ and shift of ``plan``.

        The configured objective reduces the samples of a prompt to one score.
        """
        jobs = self.jobs(members, tuple(examples), plan)
        return self._run(jobs, tuple(examples), self.config.objective)

    def unperturbed(self, examples: Sequence[Example], *, generation: int, tokens: bool = False) -> Outcome:
        """Let the current model answer every example; scores are means over samples, independent of the objective.

        With ``tokens`` the rollouts are guaranteed to hold their token ids.
        """
        (whole,) = self.jobs((UNPERTURBED,), tuple(examples), Plan(generation, 0.0, ()))
        whole = replace(whole, tokens=tokens or whole.tokens)
        size = self.config.held_out_group or len(examples)
        rows = [tuple((0, p) for p in range(i, min(i + size, len(examples)))) for i in range(0, len(examples), size)]
        jobs = [replace(whole, id=i, rows=mine) for i, mine in enumerate(rows)] if len(rows) > 1 else [whole]
        return self._run(jobs, tuple(examples), "mean")

    def _run(self, jobs: list[Job], examples: tuple[Example, ...], objective: str) -> Outcome:
        members = tuple(dict.fromkeys(member for job in jobs for member in job.members))
        sampling, failed = jobs[0].sampling, Counter[str]()
        keys = keys_of(members, range(len(examples)), sampling.samples)
        rollouts = self._rollouts(jobs, examples, failed)
        outcome = self.score(keys, examples, rollouts, objective=objective, after=sampling.generation)
        outcome.failed = {**outcome.failed, **failed}
        return outcome

    def score(
        self,
        keys: Sequence[RolloutKey],
        examples: tuple[Example, ...],
        rollouts: Iterable[Rollout],
        *,
        objective: str,
        after: int,
    ) -> Outcome:
        """Score rollouts as they arrive; the objective reduces a member's samples of a prompt to one number.

        Each rollout has one of ``keys``, which list all members and may stay without one.  A rollout's ``prompt`` is
        an index into ``examples`` here; ``after`` is the number of finished generations.
        """
        started = time.perf_counter()
        number, arrived = {key: index for index, key in enumerate(keys)}, dict[RolloutKey, Rollout]()
        answering = activities.doing("completion", goal=len(keys))
        with self.scorer.round(examples, [key.prompt for key in keys], after=after) as scoring, answering as busy:
            for rollout in rollouts:
                busy.done += 1
                key = RolloutKey(rollout.member, rollout.prompt, rollout.sample)
                arrived[key] = rollout
                if rollout.scores is None:
                    ids = rollout.token_ids if self.scorer.reads_tokens else None
                    scoring.add(number[key], rollout.text, ids=ids)
            generated = time.perf_counter()
            scores = scoring.finish()
            for place in scoring.declined():
                self.scorer.once.decline(examples[keys[place].prompt].id)
        logged, metrics = self.scorer.take_logged()
        places = [place for place, key in enumerate(keys) if key in arrived]
        ordered = [arrived[keys[place]] for place in places]
        values = _known(self.task.rewards, ordered) or {
            name: [column[place] for place in places] for name, column in scores.items()
        }
        members = tuple(dict.fromkeys(key.member for key in keys))
        rewards = total(self.task.rewards, values)
        counted = self._counted(ordered, rewards, objective)
        cells = _cells(members, len(examples), [ordered[i] for i in counted])
        columns = np.array([rewards, *(values[reward.name] for reward in self.task.rewards)])[:, counted]
        matrices = np.array([_matrix((len(members), len(examples)), cells, column) for column in columns])
        return Outcome(
            members=members,
            examples=examples,
            scores=matrices[0],
            by_reward=matrices[1:],
            rollouts=ordered,
            rewards=rewards,
            by_function=values,
            failed=scoring.failed(),
            logged=logged,
            metrics=metrics,
            seconds={"rollouts": generated - started, "score": time.perf_counter() - generated},
        )

    def _rollouts(self, jobs: list[Job], examples: tuple[Example, ...], failed: Counter[str]) -> Iterator[Rollout]:
        """Yield rollouts: conversations if the task has an environment, likelihoods, or single completions.

        ``failed`` receives the number of conversations on which each reward failed.
        """
        if self.task.environment is not None:
            talks = Conversations(self.engine, self.task, self.config, self.scorer)
            yield from talks.rollouts(jobs, examples)
            failed.update(talks.failed)
        elif scores_itself(self.task):
            yield from likelihoods.rollouts(self.engine, self.config, jobs, examples)
        else:
            yield from self.engine.evaluate(jobs)

    def _counted(self, rollouts: Sequence[Rollout], rewards: Sequence[float], objective: str) -> list[int]:
        """Return the indices of the rollouts that the objective selects for the scores."""
        choose, votes = OBJECTIVES[objective], objective in VOTING
        samples: dict[tuple[Member, int], list[int]] = {}
        for index, rollout in enumerate(rollouts):
            samples.setdefault((rollout.member, rollout.prompt), []).append(index)
        answers = [self.task.answer_of(rollout.text) if votes else rollout.text for rollout in rollouts]
        return [
            mine[chosen]
            for mine in samples.values()
            for chosen in choose([answers[i] for i in mine], [rewards[i] for i in mine])
        ]

    def jobs(self, members: tuple[Member, ...], examples: tuple[Example, ...], plan: Plan) -> list[Job]:
        """Split the members into jobs of fixed groups, independent of the engine and its workers."""
        config, size = self.config, self.config.group or len(members)
        reads = self.scorer.reads_tokens
        prompts = tuple(prompt_of(config, example) for example in examples)
        sampling = sampling_of(config, plan.generation)
        return [
            Job(index, plan.sigma, members[first : first + size], prompts, sampling, plan.shift, tokens=reads)
            for index, first in enumerate(range(0, len(members), size))
        ]


def keys_of(members: Sequence[Member], prompts: Iterable[int], samples: int) -> list[RolloutKey]:
    """Return the keys of all rollouts of an evaluation, ordered by member, then prompt, then sample."""
    return [RolloutKey(*key) for key in dict.fromkeys(product(members, prompts, range(samples)))]


def _known(rewards: Sequence[Reward], rollouts: Sequence[Rollout]) -> dict[str, list[float]] | None:
    """Return each reward's values if the rollouts were scored during generation, else None."""
    scores = [rollout.scores for rollout in rollouts if rollout.scores is not None]
    if not scores:
        return None
    assert len(scores) == len(rollouts)
    return {reward.name: [values[place] for values in scores] for place, reward in enumerate(rewards)}


def _cells(members: tuple[Member, ...], prompts: int, rollouts: Sequence[Rollout]) -> NDArray[np.intp]:
    """Return the index of every rollout in a flattened (members, prompts) matrix."""
    order = {member: index for index, member in enumerate(members)}
    return np.array([order[rollout.member] * prompts + rollout.prompt for rollout in rollouts], dtype=np.intp)


def _matrix(shape: tuple[int, int], cells: NDArray[np.intp], rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the rewards per cell into a matrix of ``shape`` (members, prompts); NaN for cells without a reward."""
    known, size = ~np.isnan(rewards), shape[0] * shape[1]
    sums = np.bincount(cells[known], weights=rewards[known], minlength=size)
    counts = np.bincount(cells[known], minlength=size)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).reshape(shape)
