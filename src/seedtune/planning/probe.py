"""Probe: chooses σ and α before training, with a small population at several σ, on the same noise and prompts.

A generation makes one step; a probe estimates the gain of that step.  It doubles the configured σ with a few pairs
until the model collapses, then evaluates the whole population at the largest usable σ and at smaller ones, where the
expected gain lies (`strategies.quadratic_model` has the model), as long as the budget of rollouts lasts.

The noise has generation numbers that training never uses.  Nothing is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.numerics import noise
from seedtune.rollouts.evaluator import Evaluator
from seedtune.rollouts.prepare import Prepared, prepare
from seedtune.run import replay
from seedtune.strategies.quadratic_model import Law, Response, Stride, best_stride, fit, response_of
from seedtune.tasks.base import Task
from seedtune.types import COUNT, UNPERTURBED, Example, Member, Plan, Rollout, tokens

GENERATION = 2**31
"""Generation number of a probe's noise; a run would need two billion generations to reach it."""

SCREEN = 2
"""Pairs per σ in the search for the edge of collapse."""

FACTOR, REACH = 2.0, 16.0
"""Factor between successive σ, and limit of the ratio to the configured σ, in both directions."""

DEGENERATE = 0.15
"""Share of empty or repeating completions, minus the unperturbed model's, that counts as a collapse."""

USUAL = 16
"""Minimum number of prompts for the unperturbed model's share of empty or repeating completions."""

FALLEN = 2.0
"""The population's mean may be this many spreads below the unperturbed model."""

NEAR = 0.8
"""The smallest σ with this share of the largest expected gain is recommended."""

SWEEP = (5, 10)
"""The sweep for comparison: number of σ, and generations for each."""

SHARE = 0.05
"""Maximum rollouts of a probe, as a share of the sweep's."""


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


@dataclass(frozen=True, slots=True)
class Level:
    """Results at one σ; ``collapse`` says why it is rejected, ``stride`` is its best step otherwise."""

    response: Response
    answers: CompletionStats
    sample: tuple[Example, str]
    """A prompt, and the completion of the member of median reward."""
    collapse: str | None
    stride: Stride | None = None

    @property
    def sigma(self) -> float:
        """The σ of the level."""
        return self.response.sigma


@dataclass(frozen=True, slots=True)
class Probe:
    """The levels in ascending σ, and the recommendation with its reason; σ and α are None if every σ collapsed."""

    levels: tuple[Level, ...]
    sigma: float | None
    alpha: float | None
    reason: str
    unperturbed: float
    """Mean reward of the unperturbed model on the prompts of the probe."""
    unperturbed_sample: tuple[Example, str]
    prompts: int
    rollouts: int
    sweep_rollouts: int
    seconds: float


def probe_config(
    config: Config,
    *,
    task: Task | None = None,
    sigmas: Sequence[float] = (),
    members: int = 16,
    prompts: int | None = None,
) -> Probe:
    """Evaluate ``members`` (in pairs) and the unperturbed model at several σ, and recommend σ and α for ``config``.

    All of ``sigmas`` are evaluated; by default they are chosen, and the probe takes at most 5 % of the rollouts of a
    sweep (5 σ × 10 generations), except that all members are evaluated at one usable σ, if there is any.  ``task``
    provides custom data and rewards; ``prompts`` of its training data are drawn, by default as many as in a generation.
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
    """Probe a prepared run, see `probe_config`."""
    started, config, task = time.perf_counter(), run.config, run.task
    count = max(2, config.prompts_per_generation) if prompts is None else prompts
    engine, _ = replay.load_base(config)
    with closing(engine):
        survey = _Survey(Evaluator(engine, task, config), _draw(config, task, count), prompts=count, pairs=members // 2)
        for sigma in sorted(set(sigmas)):
            survey.level(sigma, survey.pairs)
        if not sigmas:
            survey.search(config.sigma, int(SHARE * _sweep(config, len(survey.examples))))
    return _conclude(config, survey, time.perf_counter() - started)


def _draw(config: Config, task: Task, count: int) -> tuple[Example, ...]:
    """Draw training prompts for the unperturbed model in an order specific to the probe; members get the first."""
    address = noise.Address(noise.key_for(config.seed, noise.Purpose.PROMPT_ORDER), noise.Stream.ORDER, GENERATION)
    order = noise.permutation(address, len(task.train))
    return tuple(task.train[int(i)] for i in order[: max(count, USUAL)])


def _sweep(config: Config, prompts: int) -> int:
    return math.prod(SWEEP) * config.population * prompts * config.samples_per_prompt


class _Survey:
    """Scores and rollouts so far, by σ; evaluates only members not evaluated before."""

    def __init__(self, evaluator: Evaluator, drawn: tuple[Example, ...], *, prompts: int, pairs: int) -> None:
        self.evaluator, self.examples, self.pairs = evaluator, drawn[:prompts], pairs
        outcome = evaluator.evaluate((UNPERTURBED,), drawn, plan=Plan(GENERATION, 0.0, ()))
        self.unperturbed = outcome.scores[:, :prompts]
        self.texts = {rollout.prompt: rollout.text for rollout in outcome.rollouts}
        self.usual = describe(outcome.rollouts, self.texts)
        self.rollouts = len(outcome.rollouts)
        self.scores: dict[float, NDArray[np.float64]] = {}
        self.answers: dict[float, list[Rollout]] = {}

    def level(self, sigma: float, pairs: int) -> Level:
        """Return the results at ``sigma`` with at least ``pairs`` pairs."""
        known = self.scores.get(sigma, self.unperturbed)
        have = len(known) // 2
        if pairs > have:
            members = tuple(Member(GENERATION, pair, sign) for pair in range(have, pairs) for sign in (1, -1))
            outcome = self.evaluator.evaluate(members, self.examples, plan=Plan(GENERATION, sigma, members))
            known = np.concatenate([known, outcome.scores])
            self.answers.setdefault(sigma, []).extend(outcome.rollouts)
            self.rollouts += len(outcome.rollouts)
        self.scores[sigma] = known
        response, answers = response_of(sigma, known), describe(self.answers[sigma], self.texts)
        return Level(response, answers, self._sample(sigma), collapse_of(response, answers, self.usual))

    def _sample(self, sigma: float) -> tuple[Example, str]:
        """Return the first prompt, and its completion by the member of median reward."""
        rewards = np.nan_to_num(self.scores[sigma][1:].mean(axis=1), nan=-np.inf)
        position = int(np.argsort(rewards, kind="stable")[len(rewards) // 2])
        member = Member(GENERATION, position // 2, -1 if position % 2 else 1)
        text = next(r.text for r in self.answers[sigma] if r.member == member and r.prompt == 0)
        return self.examples[0], text

    def search(self, start: float, budget: int) -> None:
        """Increase σ to the edge of collapse with few pairs, then decrease it with all of them."""
        top, low = self._edge(start, budget), start / REACH
        sigma, done = top, 0
        while sigma >= low and (self.rollouts + self._cost(sigma) <= budget or done == 0):
            done += self.level(sigma, self.pairs).collapse is None
            sigma /= FACTOR

    def _edge(self, start: float, budget: int) -> float:
        """Return the largest σ that is usable judging by a few pairs; below ``start`` if that has collapsed."""
        few, high = min(SCREEN, self.pairs), start * REACH
        spare = budget - 3 * self.pairs * 2 * len(self.examples)
        usable = self.level(start, few).collapse is None
        sigma = start
        while start / REACH < sigma < high and self.rollouts < spare:
            following = sigma * FACTOR if usable else sigma / FACTOR
            fine = self.level(following, few).collapse is None
            if fine != usable:
                return following if fine else sigma
            sigma = following
        return sigma

    def _cost(self, sigma: float) -> int:
        have = len(self.scores.get(sigma, self.unperturbed)) // 2
        return (self.pairs - have) * 2 * len(self.examples) * self.evaluator.config.samples_per_prompt


def collapse_of(response: Response, answers: CompletionStats, usual: CompletionStats) -> str | None:
    """Return why a σ is unusable, or None; ``usual`` are the unperturbed model's statistics.

    Rewards alone do not reveal a collapse: if short completions are rewarded, loops of nonsense may well score better.
    """
    if not response.members:
        return (
            "no pair of members could be scored (unperturbed it could): answers are beyond what the reward understands"
        )
    if answers.repeating - usual.repeating > DEGENERATE:
        return (
            f"{answers.repeating:.0%} of the answers repeat themselves (the unperturbed model: {usual.repeating:.0%})"
        )
    if answers.empty - usual.empty > DEGENERATE:
        return f"{answers.empty:.0%} of the answers are empty (the unperturbed model: {usual.empty:.0%})"
    gap = response.gap
    if gap > FALLEN * response.spread and gap > FALLEN * response.gap_error and gap > 1e-9 * abs(response.unperturbed):
        return f"the mean reward fell from {response.unperturbed:.4g} to {response.mean:.4g}, ± {response.spread:.3g}"
    return None


def _conclude(config: Config, survey: _Survey, seconds: float) -> Probe:
    """Fit the law to the usable σ, compute every level's best step, and recommend."""
    levels = [survey.level(sigma, 0) for sigma in sorted(survey.scores)]
    usable = [level.response for level in levels if level.collapse is None]
    law = fit(usable) if usable else Law(0.0, 0.0)
    stride_of = partial(best_stride, law=law, population=config.population, antithetic=config.antithetic)
    levels = [level if level.collapse else replace(level, stride=stride_of(level.response)) for level in levels]
    sigma, alpha, reason = recommend(levels, config)
    return Probe(
        levels=tuple(levels),
        sigma=sigma,
        alpha=alpha,
        reason=reason,
        unperturbed=float(np.nanmean(survey.unperturbed)),
        unperturbed_sample=(survey.examples[0], survey.texts[0]),
        prompts=len(survey.examples),
        rollouts=survey.rollouts,
        sweep_rollouts=_sweep(config, len(survey.examples)),
        seconds=seconds,
    )


def recommend(levels: Sequence[Level], config: Config) -> tuple[float | None, float | None, str]:
    """Return (σ, α, reason): the smallest usable σ whose expected gain is near the largest."""
    usable = [(level, level.stride) for level in levels if level.stride is not None]
    if not usable:
        reason = "the model collapsed at every σ that was tried: give smaller ones with --sigmas, or check the reward."
        return None, None, reason
    most = max(stride.gain for _, stride in usable)
    if most <= 0:
        sigma = max(level.sigma for level, _ in usable)
        reason = (
            "all members have the same reward at every usable σ, so this is only the largest of them with the cautious "
            "α = σ/2. Use prompts on which the reward can differ, or more of them."
        )
        return sigma, sigma / 2, reason
    chosen, stride = next((level, stride) for level, stride in usable if stride.gain >= NEAR * most)
    reason = _reason(chosen, stride, levels)
    if config.shaping != "zscore":
        units = "That α is for shaping=zscore; with another one it has another unit"
        return chosen.sigma, None, f"{reason} {units}: leave alpha out, and it is found while training."
    # With K subspaces, a fixed step is √K times as long as α implies (CoPES).
    return chosen.sigma, chosen.sigma * stride.ratio / math.sqrt(config.subspaces), reason


def _reason(chosen: Level, stride: Stride, levels: Sequence[Level]) -> str:
    above = next((level for level in levels if level.sigma > chosen.sigma), None)
    limit = "no larger σ was tried"
    if above is not None and above.collapse is not None:
        limit = f"at σ {above.sigma:.3g} the model has collapsed: {above.collapse}"
    elif above is not None:
        limit = f"a larger σ is not worth more than 1/{NEAR:g} of it"
    bound = (
        "this is nearly as long as a member's perturbation, further nothing was measured"
        if stride.capped
        else "a longer step would lose more to curvature (the current model above its members) than it gains"
    )
    return (
        f"a generation is expected to gain {stride.gain:.3g} on other prompts, where members keep "
        f"{stride.reliability:.0%} of what sets them apart here; {limit}; α = {stride.ratio:.2g} σ because {bound}."
    )
