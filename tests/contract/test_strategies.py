"""What every strategy promises, on a landscape that costs nothing to evaluate."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from seedtune.strategies.base import Strategy, update_of
from seedtune.strategies.es import EvolutionStrategy

SIZE = 10_000
SETTINGS = {"population": 32, "sigma": 0.02, "alpha": 0.02}

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "es": lambda: EvolutionStrategy(**SETTINGS),
    "es-single": lambda: EvolutionStrategy(**SETTINGS, antithetic=False),
    "es-per-prompt": lambda: EvolutionStrategy(**SETTINGS, shaping="per_prompt"),
}
"""One maker per strategy, with settings that climb the quadratic below."""


@pytest.fixture(params=STRATEGIES.values(), ids=STRATEGIES)
def strategy(request) -> Strategy:
    return request.param()


def noise(generation: int, pair: int) -> np.ndarray:
    return np.random.default_rng((generation, pair)).standard_normal(SIZE)


def quadratic(theta: np.ndarray, generation: int, member: int) -> np.ndarray:
    """Four noisy looks at −|θ|²/size."""
    jitter = np.random.default_rng((generation, member, 1)).normal(size=4)
    return -np.mean(theta**2) + 1e-4 * jitter


def run(strategy: Strategy, generations: int, damage: Callable[[np.ndarray, int], None] = lambda *_: None):
    """θ and the mean reward of every generation."""
    theta, state, rewards = np.ones(SIZE), strategy.initial(), []
    for generation in range(generations):
        plan = strategy.ask(state, generation)
        scores = np.array(
            [
                quadratic(theta + member.sign * plan.sigma * noise(member.generation, member.pair), generation, i)
                for i, member in enumerate(plan.members)
            ]
        )
        damage(scores, generation)
        step = strategy.tell(state, plan, scores)
        assert np.isfinite(step.coefficients).all()
        assert step.update == update_of(plan, step.coefficients)
        for term in step.update.terms:
            theta += term.weight * noise(term.generation, term.pair)
        state = json.loads(json.dumps(step.state))
        rewards.append(-float(np.mean(theta**2)))
    return theta, rewards


def test_it_climbs_a_noisy_quadratic(strategy):
    _, rewards = run(strategy, 60)
    assert rewards[-1] > rewards[0] + 0.02
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10])


def test_the_same_scores_give_the_same_run(strategy):
    first, second = run(strategy, 4), run(strategy, 4)
    assert np.array_equal(first[0], second[0])


def test_its_members_are_distinct_and_as_many_as_asked_for(strategy):
    plan = strategy.ask(strategy.initial(), 11)
    assert len(set(plan.members)) == len(plan.members) == SETTINGS["population"]
    assert plan.generation == 11
    assert all(member.sign for member in plan.members)


def test_it_does_not_change_the_scores(strategy):
    plan = strategy.ask(strategy.initial(), 0)
    scores = np.random.default_rng(0).normal(size=(len(plan.members), 3))
    scores[0, 1] = math.nan
    strategy.tell(strategy.initial(), plan, before := scores.copy())
    np.testing.assert_array_equal(before, scores)


def fail_some(scores, generation):
    scores[generation % len(scores)] = math.nan
    scores[:, 0][generation % 3 :: 3] = math.nan


def fail_all(scores, generation):
    if generation % 2:
        scores[:] = math.nan


def tie(scores, generation):
    if generation % 2:
        scores[:] = 0.1


@pytest.mark.parametrize("damage", [fail_some, fail_all, tie])
def test_it_survives_generations_that_fail_or_tie(strategy, damage):
    theta, _ = run(strategy, 6, damage)
    assert np.isfinite(theta).all()


@pytest.mark.parametrize("value", [math.nan, 0.1], ids=["failed", "tied"])
def test_a_generation_without_a_difference_moves_nothing(strategy, value):
    plan = strategy.ask(strategy.initial(), 0)
    step = strategy.tell(strategy.initial(), plan, np.full((len(plan.members), 3), value))
    assert step.update.terms == ()
