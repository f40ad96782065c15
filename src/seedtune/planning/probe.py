"""Probe: what perturbations of several sizes do to rewards and answers, before training, on the same noise and prompts.

For those who want to look: a run without σ measures it by itself, by the same rule (`seedtune.strategies.sigma_rule`).
The noise has a generation number that training never uses.  Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from seedtune.config.config import Config
from seedtune.errors import ConfigError, RewardError
from seedtune.numerics import noise
from seedtune.rollouts import sigma_search
from seedtune.rollouts.evaluator import Evaluator, Outcome
from seedtune.rollouts.prepare import Prepared, prepare
from seedtune.rollouts.sigma_search import GENERATION
from seedtune.run import replay
from seedtune.strategies import sigma_rule
from seedtune.strategies.shaping import member_rewards
from seedtune.strategies.sigma_rule import Measurement
from seedtune.tasks.base import Task
from seedtune.types import COUNT, UNPERTURBED, Example, Member, Plan, Rollout, tokens

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The σ that are shown, as multiples of the one that the rule finds."""


@dataclass(frozen=True, slots=True)
class CompletionStats:
    """Shares of completions: truncated at the limit, empty, repeating, and equal to the unperturbed model's."""

    clipped: float
    empty: float
    repeating: float
    unchanged: float


def describe(rollouts: Sequence[Rollout], unperturbed: Mapping[int, str]) -> CompletionStats:
    """Return the shares over ``rollouts``; ``unperturbed`` maps a prompt index to the unperturbed model's text."""
    count = max(1, len(rollouts))
    return CompletionStats(
        clipped=sum(r.finish == "length" for r in rollouts) / count,
        empty=sum(not r.text.strip() for r in rollouts) / count,
        repeating=sum(bool(r.text.strip()) and tokens(r).repeating for r in rollouts) / count,
        unchanged=sum(unperturbed.get(r.prompt) == r.text for r in rollouts) / count,
    )


class Sample(NamedTuple):
    """A prompt and a completion."""

    prompt: Example
    completion: str


@dataclass(frozen=True, slots=True)
class Level:
    """Rewards and answers of the members at one σ; rewards are means over prompts, NaN if none could be scored."""

    sigma: float
    loss: float
    """How much less probable members find the model's own answers, in nats per token."""
    mean: float
    spread: float
    """Standard deviation of the members' rewards."""
    best_gain: float
    """Best member − unperturbed model."""
    gap: float
    """Unperturbed model − mean of the members."""
    success_rate: float
    """Share of members better than the unperturbed model."""
    answers: CompletionStats
    sample: Sample
    """The first prompt, and its completion by the member of median reward."""


@dataclass(frozen=True, slots=True)
class Probe:
    """The levels in ascending σ, and the σ that a run would take, with the measurements that it follows from."""

    levels: tuple[Level, ...]
    sigma: float
    measured: tuple[Measurement, ...]
    unperturbed: float
    """Mean reward of the unperturbed model on the prompts of the probe."""
    unperturbed_answers: CompletionStats
    unperturbed_sample: Sample
    prompts: int
    rollouts: int
    seconds: float


def probe_config(
    config: Config,
    *,
    task: Task | None = None,
    sigmas: Sequence[float] = (),
    members: int = 16,
    prompts: int | None = None,
) -> Probe:
    """Evaluate ``members`` (in pairs) and the unperturbed model at several σ, and find the σ that a run would take.

    Evaluated are ``sigmas``, by default from a quarter of that σ to four times as much.  ``task`` provides custom data
    and rewards; ``prompts`` of its training data are drawn, by default as many as in a generation.
    Raises ConfigError, DataError or RewardError.
    """
    if not 4 <= members <= COUNT or members % 2:
        raise ConfigError(f"members={members}: a probe takes pairs, at least two. Give an even number from 4.")
    for sigma in sigmas:
        config.replace(sigma=sigma)
    if prompts is not None and not 1 <= prompts <= COUNT:
        raise ConfigError(f"prompts={prompts}: a probe needs from one to {COUNT:,}.")
    return probe(prepare(config, task=task), sigmas=sigmas, members=members, prompts=prompts)


def probe(run: Prepared, *, sigmas: Sequence[float], members: int, prompts: int | None) -> Probe:
    """Probe a prepared run, see `probe_config`.  Raises RewardError if nothing could be scored."""
    started, config, task = time.perf_counter(), run.config, run.task
    examples = _draw(config, task, config.prompts_per_generation if prompts is None else prompts)
    engine, _ = replay.load_base(config)
    with closing(engine):
        measured = sigma_search.search(engine, config, task)
        found = sigma_rule.found(measured)
        evaluator = Evaluator(engine, task, config)
        base = evaluator.evaluate((UNPERTURBED,), examples, plan=Plan(GENERATION, 0.0, ()))
        if np.isnan(base.scores).all():
            raise RewardError(
                "the unperturbed model's answers could not be scored on any prompt. Check the reward function."
            )
        population = tuple(Member(GENERATION, pair, sign) for pair in range(members // 2) for sign in (1, -1))
        asked = sorted(set(sigmas)) or [float(f"{factor * found:.2g}") for factor in FACTORS]
        own = sigma_search.answered(engine, config, task)
        losses = [sigma_search.loss(engine, config, own, sigma) for sigma in asked]
        levels = [_level(evaluator, population, sigma, base, loss) for sigma, loss in zip(asked, losses, strict=True)]
    texts = _texts(base)
    return Probe(
        levels=tuple(levels),
        sigma=found,
        measured=measured,
        unperturbed=float(np.nanmean(base.scores)),
        unperturbed_answers=describe(base.rollouts, texts),
        unperturbed_sample=Sample(examples[0], texts[0]),
        prompts=len(examples),
        rollouts=(len(levels) * members + 1) * len(examples) * config.samples_per_prompt,
        seconds=time.perf_counter() - started,
    )


def _draw(config: Config, task: Task, count: int) -> tuple[Example, ...]:
    """Draw training prompts in an order specific to the probe."""
    address = noise.Address(noise.key_for(config.seed, noise.Purpose.PROMPT_ORDER), noise.Stream.ORDER, GENERATION)
    order = noise.permutation(address, len(task.train))
    return tuple(task.train[int(i)] for i in order[:count])


def _level(evaluator: Evaluator, population: tuple[Member, ...], sigma: float, base: Outcome, loss: float) -> Level:
    """Evaluate the members at ``sigma`` on the prompts of the unperturbed model's outcome ``base``."""
    outcome = evaluator.evaluate(population, base.examples, plan=Plan(GENERATION, sigma, population))
    common = ~np.isnan(base.scores[0]) & ~np.isnan(outcome.scores).all(axis=0)
    if not common.any():
        raise RewardError(f"no answer of the members at σ {sigma:g} could be scored. Give smaller ones with --sigmas.")
    rewards, unperturbed = member_rewards(outcome.scores[:, common]), float(base.scores[0, common].mean())
    known = rewards[~np.isnan(rewards)]
    median = population[int(np.argsort(np.nan_to_num(rewards, nan=-np.inf), kind="stable")[len(rewards) // 2])]
    text = next(rollout.text for rollout in outcome.rollouts if rollout.member == median and rollout.prompt == 0)
    return Level(
        sigma=sigma,
        loss=loss,
        mean=float(known.mean()),
        spread=float(known.std()),
        best_gain=float(known.max()) - unperturbed,
        gap=unperturbed - float(known.mean()),
        success_rate=float((known > unperturbed).mean()),
        answers=describe(outcome.rollouts, _texts(base)),
        sample=Sample(base.examples[0], text),
    )


def _texts(base: Outcome) -> dict[int, str]:
    return {rollout.prompt: rollout.text for rollout in base.rollouts}
