"""The guard against collapse: when it goes back, and when it does not."""

from __future__ import annotations

import numpy as np
import pytest

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.strategies.base import Feedback
from seedtune.strategies.collapse_guard import Guard
from seedtune.types import Member, Plan


def update(state, reward, generation, *, guard=None, error=0.0):
    """(generation to roll back to, state) after one member with a mean reward of this variance."""
    observation = {"reward": reward, "spread": error**0.5}
    return (guard or Guard()).update(state, Plan(generation, 0.1, (Member(0, 0, 1),)), observation)


def watched(rewards):
    state = Guard().init()
    for generation, reward in enumerate(rewards):
        _, state = update(state, reward, generation)
    return state


def trending(trend, seed):
    """Rewards with noise of one standard deviation, and what they gain in a generation."""
    return trend * np.arange(300) + np.random.default_rng(seed).normal(size=300)


@pytest.mark.parametrize("trend", [0.0, 0.2, -0.002])
def test_the_guard_does_not_mind_noise_or_a_slow_trend(trend):
    """Nineteen runs of twenty go through 300 generations without an alarm."""
    assert sum(alarms(trending(trend, seed)) is not None for seed in range(20)) <= 1


@pytest.mark.parametrize("trend", [-0.02, -0.05])
def test_the_guard_sees_a_fall_that_goes_on_when_it_is_large_against_the_noise(trend):
    found = [alarms(trending(trend, seed)) for seed in range(20)]
    assert None not in found
    assert -4.0 < np.median([trend * (generation - best_at) for generation, best_at in found]) < -2.0


def test_the_guard_sees_a_collapse_within_a_few_generations_and_names_the_best():
    rng = np.random.default_rng(1)
    rewards = [0.1 * g + 0.3 * rng.normal() for g in range(30)]
    state = watched(rewards)
    best = state["best_at"]
    for generation in range(30, 33):
        rollback_to, state = update(state, -8.0, generation)
        if rollback_to is not None:
            break
    assert rollback_to == state["best_at"] == best >= 25


def test_rewards_that_begin_all_equal_are_no_reason_to_go_back():
    """Rare successes: the first generations tie at 0, and a later dip is no collapse."""
    for seed in range(50):
        draws = np.random.default_rng(seed).binomial(1, [0.0005] * 10 + [0.004] * 60, size=(256, 70)).T
        state = {}
        for generation, row in enumerate(draws):
            rollback_to, state = update(state, float(row.mean()), generation, error=float(row.var()) / 256)
            assert rollback_to is None, (seed, generation)


def alarms(rewards):
    """(generation, best_at) of the first alarm, if there is one."""
    state = {}
    for generation, reward in enumerate(rewards):
        rollback_to, state = update(state, reward, generation)
        if rollback_to is not None:
            return generation, rollback_to
    return None


def test_the_guard_sees_a_collapse_that_begins_while_it_only_watches():
    rng = np.random.default_rng(1)
    rewards = [0.30, 0.32, 0.34, 0.36, 0.36, *rng.normal(0.0, 0.005, 20)]
    generation, best_at = alarms(rewards)
    assert generation <= 12
    assert best_at == 4


def test_one_hard_batch_of_prompts_is_no_collapse_and_four_in_a_row_are():
    rewards = np.random.default_rng(2).normal(0.5, 0.02, 40)
    for hard, expected in (((20,), False), ((20, 30), False), ((20, 21, 22, 23), True)):
        batch = rewards.copy()
        batch[list(hard)] = -5.0
        assert (alarms(batch) is not None) is expected


@pytest.mark.parametrize("scored", [0.0, 0.1, 0.4])
def test_a_judge_that_is_down_for_half_of_the_completions_or_more_says_nothing_about_the_model(scored):
    strategy = strategies.create(Config(population=8, sigma=0.1))
    rng, state, before = np.random.default_rng(0), {}, {}
    for generation in range(60):
        scores = rng.normal(0.01 * generation, 0.05, (8, 10))
        if 30 <= generation < 45:
            before = before or state
            scores = np.where(rng.permuted(np.arange(80).reshape(8, 10)) < 80 * scored, scores - 5.0, np.nan)
        step = strategy.tell(state, strategy.ask(state, generation), Feedback(scores, None, 0.0))
        assert step.rollback_to is None
        state = step.state
        if 30 <= generation < 45:
            assert state["guard"] == before["guard"]
    assert "factor" not in state["alpha"]


def test_the_guard_watches_rewards_that_many_completions_never_have():
    guard, state = Guard(), {}
    for generation in range(30):
        reward = 0.5 + 0.001 * (-1) ** generation if generation < 20 else -5.0
        observation = {"reward": reward, "spread": 1e-3, "scored": 0.2}
        rollback_to, state = guard.update(state, Plan(generation, 0.1, (Member(0, 0, 1),)), observation)
        if rollback_to is not None:
            break
    assert 20 < generation < 29
    assert guard.rolled_back(state)["scored"] == 0.2


def test_weights_of_which_nothing_can_be_scored_are_gone_back_on():
    guard, state = Guard(unscored=3), {}
    for _ in range(9):
        rollback_to, state = guard.update(state, Plan(9, 0.1, ()), {})
    assert rollback_to is None  # there is nothing to go back to: the reward function itself may be broken
    for generation, reward in enumerate((0.1, 0.2, 0.3)):
        _, state = update(state, reward, generation, guard=guard)
    found = []
    for _ in range(3):
        rollback_to, state = guard.update(state, Plan(9, 0.1, ()), {})
        found.append(rollback_to)
    assert found == [None, None, 2]
    assert "missed" not in guard.rolled_back(state)


def test_a_guard_begins_again_when_sigma_has_grown():
    """What a larger σ costs its members is not a collapse."""
    settings = {"population": 8, "sigma": 0.1, "rollback_on_collapse": "yes", "alpha": 0.01}
    growing = strategies.create(Config(**settings, sigma_schedule={"warmup": 30}))
    rng, state = np.random.default_rng(0), {}
    for generation in range(60):
        plan = growing.ask(state, generation)
        scores = 1.0 - 10.0 * plan.sigma**2 + rng.normal(0, 0.005, (8, 4))
        step = growing.tell(state, plan, Feedback(scores, None, 0.0))
        state = step.state
        assert step.rollback_to is None
