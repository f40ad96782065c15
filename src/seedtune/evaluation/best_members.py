"""RandOpt: many random members of a model, the best of them on training prompts, and their vote on held-out ones.

No training at all; most of what it gains is matched by a better prompt and a vote of samples, which stand beside it
(`seedtune.evaluation.prompt_baseline`).
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from seedtune import activities
from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.errors import ConfigError
from seedtune.evaluation.held_out import GENERATED, EvalConfig, Measures, by_set, estimated, prompts_of, sampled
from seedtune.evaluation.prompt_baseline import CHOSEN_ON, voted
from seedtune.rewards.scorer import Scorer
from seedtune.rollouts import sigma_search
from seedtune.rollouts.evaluator import Evaluator, Outcome
from seedtune.rollouts.sigma_search import GENERATION
from seedtune.run import metrics
from seedtune.strategies import sigma_rule
from seedtune.tasks.base import Task
from seedtune.types import Example, Member, Plan

FACTORS = (0.5, 1.0, 2.0)
"""Sizes of perturbation, as multiples of σ; every size has the same number of members."""

KEPT = 8
"""One member of so many votes."""


class Sized(NamedTuple):
    """A member at its size of perturbation."""

    sigma: float
    member: Member


def best_members(engine: Engine, task: Task, config: Config, eval_config: EvalConfig) -> Measures:
    """Evaluate the vote of the best of ``eval_config.randopt`` members of the engine's current model.

    Raises ConfigError if the task has no training prompts to choose them on.
    """
    started = time.perf_counter()
    config = config.replace(**GENERATED, temperature=0.0, samples_per_prompt=1)
    kept = _chosen(engine, task, config, eval_config)
    examples = tuple(prompts_of(task, config, eval_config.limit))
    with activities.doing(f"held-out prompts of {task.name}"):
        parts = [_answers(engine, task, config, same, examples) for same in _by_size(kept)]
    first = parts[0]
    whole = replace(
        first,
        rollouts=[rollout for part in parts for rollout in part.rollouts],
        rewards=[reward for part in parts for reward in part.rewards],
    )
    columns = sampled(whole, task, (len(kept),))
    columns |= by_set(columns, examples, task)
    engine.take_times()
    seconds = time.perf_counter() - started
    return voted(Measures(task.name, columns, estimated(columns, eval_config.seed), seconds))


def votes_of(members: int) -> int:
    """Return how many of the members vote."""
    return max(1, members // KEPT)


def _chosen(engine: Engine, task: Task, config: Config, eval_config: EvalConfig) -> list[Sized]:
    """Return the members of the highest mean reward on training prompts, in a fixed order among equal ones."""
    if not task.train:
        raise ConfigError(f"task {task.name!r} has no training prompts to choose members on. Leave out --randopt.")
    practice = tuple(task.train[: min(CHOSEN_ON, eval_config.limit or CHOSEN_ON)])
    sigma = config.sigma or sigma_rule.found(sigma_search.search(engine, config, task))
    found: list[tuple[float, Sized]] = []
    with activities.doing("random members"):
        for same in _by_size(_drawn(eval_config.randopt, sigma)):
            outcome = _answers(engine, task, config, same, practice)
            for one, scores in zip(same, outcome.scores, strict=True):
                mean = metrics.mean(scores)
                found.append((-np.inf if mean is None else mean, one))
    best = sorted(found, key=lambda pair: -pair[0])
    return [one for _, one in best[: votes_of(eval_config.randopt)]]


def _drawn(count: int, sigma: float) -> list[Sized]:
    """Return members in pairs ±ε, at one size after the other."""
    sizes = [factor * sigma for factor in FACTORS]
    return [Sized(sizes[n // 2 % len(sizes)], Member(GENERATION, n // 2, -1 if n % 2 else 1)) for n in range(count)]


def _by_size(members: list[Sized]) -> list[list[Sized]]:
    return [[one for one in members if one.sigma == sigma] for sigma in sorted({one.sigma for one in members})]


def _answers(
    engine: Engine, task: Task, config: Config, members: list[Sized], examples: tuple[Example, ...]
) -> Outcome:
    """Let members of one size answer; rewards that change with the generations score as at the end of the run."""
    asked = tuple(one.member for one in members)
    with closing(Scorer(task.rewards, config, step=config.generations)) as scorer:
        return Evaluator(engine, task, config, scorer).evaluate(asked, examples, Plan(0, members[0].sigma, asked))
