"""The adaptive step against its formulas, computed here from dense vectors."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.landscape import SIZE, climb, evaluate, noise, terms_of

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.strategies.base import Feedback, Situation
from seedtune.strategies.observation import gain, observe, odd_parts, shared_power, step_ratio_of
from seedtune.strategies.step_estimates import (
    BEND,
    DOUBT,
    LATER,
    MEMORY,
    UNUSUAL,
    USUAL,
    RunningAverages,
    curvature,
    reliability,
)
from seedtune.strategies.step_size import FLOOR, Adaptive, best_step_ratio

averaged, NONE = RunningAverages().update, RunningAverages().init()
PAIRS = strategies.create(Config(population=32, sigma=0.02))
SINGLES = strategies.create(Config(population=32, sigma=0.02, antithetic=False))


ONE = {"reward": 1.0, "spread": 2.0, "slope": 2.0, "power": 4.0, "shared": 4.0, "share": 0.5, "length": 1.0}
"""The observation of a generation without an unperturbed reward."""


def observation_of(strategy, scores, unperturbed=None, share=0.0):
    plan = strategy.ask({}, 0)
    feedback = Feedback(scores, unperturbed, share)
    return plan, observe(plan, feedback, strategy.shape(feedback))


@pytest.mark.parametrize("strategy", [PAIRS, SINGLES], ids=["pairs", "singles"])
def test_the_step_has_the_length_that_was_decided(strategy):
    plan = strategy.ask({}, 0)
    step = strategy.tell({}, plan, evaluate(plan, np.ones(SIZE)))
    moved = sum(term.weight * noise(term.generation, term.pair) for term in terms_of(plan, step))
    ratio = step.state["alpha"]["step_ratio"]
    assert np.linalg.norm(moved) == pytest.approx(ratio * plan.sigma * math.sqrt(SIZE), rel=0.03)
    assert step_ratio_of(step.alpha, plan.sigma, step.observation, 32) == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("strategy", [PAIRS, SINGLES], ids=["pairs", "singles"])
def test_the_predicted_gain_is_the_gain_of_a_quadratic(strategy):
    """−‖θ‖²/d from θ = 1: slope and curvature of the model against the reward of the moved point itself."""
    rng, big = np.random.default_rng(3), 200_000
    plan = strategy.ask({}, 0)
    drawn = {(m.generation, m.pair): rng.standard_normal(big) for m in plan.members}
    theta, sigma = np.ones(big), 0.2
    at = lambda x: -float(np.mean(x**2))  # noqa: E731
    scores = np.array([[at(theta + m.sign * sigma * drawn[m.generation, m.pair])] for m in plan.members])
    feedback = Feedback(scores, np.array([at(theta)]), share=1.0)
    utilities = strategy.shape(feedback)
    found = observe(plan, feedback, utilities)
    for alpha in (0.1, 0.4):
        z = zip(plan.members, utilities, strict=True)
        moved = theta + alpha / 32 * sum(c * m.sign * drawn[m.generation, m.pair] for m, c in z)
        predicted = gain(found, step_ratio_of(alpha, sigma, found, 32), 1.0)
        assert predicted == pytest.approx(at(moved) - at(theta), rel=0.05)


def test_power_that_prompts_share_is_told_from_power_that_they_do_not():
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 5))
    assert shared_power(2.0 * common + own) == pytest.approx(4.0, rel=0.1)
    assert shared_power(own) == pytest.approx(0.0, abs=0.05)
    assert shared_power(own[:, :1]) == pytest.approx(float(np.mean(own[:, 0] ** 2)))


def test_a_single_prompt_has_nothing_in_common_with_others():
    scores = np.random.default_rng(0).normal(size=(32, 1))
    found = observation_of(PAIRS, scores, share=0.01)[1]
    assert "shared_error" not in found
    assert reliability(averaged(NONE, found)) == pytest.approx(reliability(NONE), rel=0.01)


def test_shared_power_is_the_mean_product_over_pairs_of_prompts():
    odd = np.random.default_rng(1).normal(size=(7, 4))
    products = [np.mean(odd[:, i] * odd[:, j]) for i in range(4) for j in range(4) if i != j]
    assert shared_power(odd) == pytest.approx(float(np.mean(products)), rel=1e-12)


def test_odd_parts_of_pairs_are_half_their_difference():
    scores = np.random.default_rng(2).normal(size=(32, 3))
    np.testing.assert_allclose(odd_parts(PAIRS.ask({}, 0), scores), (scores[::2] - scores[1::2]) / 2, atol=1e-15)


def test_odd_parts_of_single_members_are_their_distance_from_the_mean():
    scores = np.random.default_rng(2).normal(size=(32, 3))
    np.testing.assert_allclose(odd_parts(SINGLES.ask({}, 0), scores), scores - scores.mean(axis=0), atol=1e-15)


def test_a_sample_that_lacks_rewards_says_nothing():
    scores = np.random.default_rng(2).normal(size=(32, 3))
    scores[5] = np.nan
    assert odd_parts(PAIRS.ask({}, 0), scores).shape == (15, 3)
    scores[:] = np.nan
    assert observation_of(PAIRS, scores)[1] == {}


def test_members_against_the_unperturbed_model_are_counted_with_ties_as_halves():
    scores = np.repeat(np.arange(32.0)[:, None], 2, axis=1)
    assert observation_of(PAIRS, scores, np.array([7.0, 7.0]))[1]["success_rate"] == (24 + 0.5) / 32
    assert observation_of(PAIRS, scores, np.array([7.0, 7.0]))[1]["curvature"] == 7.0 - 15.5
    assert "curvature" not in observation_of(PAIRS, scores)[1]


def posterior(*estimates):
    """The mean of a positive number of which several normal variables tell, by summing over its likelihood."""
    values = np.linspace(0.0, 20.0, 2_000_001)
    weights = np.exp(sum(-0.5 * ((values - value) / error) ** 2 for value, error in estimates))
    return (values * weights).sum() / weights.sum()


def test_before_anything_is_measured_the_reliability_is_the_usual_one():
    assert reliability(NONE) == pytest.approx(posterior((USUAL, UNUSUAL)), rel=1e-4)


@pytest.mark.parametrize(("shared", "error"), [(1.0, 1.0), (-1.0, 0.5), (0.1, 2.0), (2.0, 0.01), (0.0, 1e300)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_what_prompts_have_in_common_counts_as_far_as_it_is_known(shared, error, share):
    averages = {**NONE, "power": 4.0, "shared": shared, "shared_error": error, "share": share}
    estimates = ((USUAL, UNUSUAL), (max(0.0, shared / 4.0), error / 4.0 / (1.0 - share)))
    assert reliability(averages) == pytest.approx(min(1.0, posterior(*estimates)), rel=1e-3)


def test_what_is_usual_is_so_when_a_run_begins():
    mean = NONE
    for _ in range(40):
        mean = averaged(mean, ONE)
    known = {"power": 4.0, "shared": 0.0, "shared_error": 0.8, "share": 0.0}
    assert reliability({**NONE, **known}) == pytest.approx(posterior((USUAL, UNUSUAL), (0.0, 0.2)), rel=1e-4)
    later = posterior((USUAL, UNUSUAL / math.sqrt(LATER)), (0.0, 0.2))
    assert reliability({**mean, **known}) == pytest.approx(later, rel=1e-4)
    assert averaged(NONE, ONE)["usual"] == MEMORY


def test_a_generation_of_all_prompts_says_nothing_of_others():
    averages = {**NONE, "power": 4.0, "shared": 4.0, "shared_error": 0.1, "share": 1.0}
    assert reliability(averages) == reliability(NONE)


def test_what_steps_kept_counts_as_far_as_it_is_known():
    averages = {
        **NONE,
        "power": 4.0,
        "shared": 1.0,
        "shared_error": 1.0,
        "realized_fraction": 0.8,
        "realized_precision": 25.0,
    }
    estimates = ((USUAL, UNUSUAL), (0.25, 0.25), (0.8, 0.2))
    assert reliability(averages) == pytest.approx(posterior(*estimates), rel=1e-4)
    assert reliability({**averages, "realized_precision": 1e12}) == pytest.approx(0.8, abs=1e-3)
    assert reliability({**averages, "realized_fraction": 3.0, "realized_precision": 1e12}) == 1.0
    assert reliability({**averages, "realized_fraction": -3.0, "realized_precision": 1e6}) < 1e-3


def test_the_error_of_what_prompts_share_is_that_of_the_mean_over_samples():
    rng = np.random.default_rng(5)
    found = [observation_of(PAIRS, rng.normal(size=(32, 6)) + rng.normal(size=(32, 1)))[1] for _ in range(400)]
    spread = np.std([observation["shared"] for observation in found])
    assert np.mean([observation["shared_error"] for observation in found]) == pytest.approx(spread, rel=0.15)


def test_the_error_of_an_average_shrinks_with_generations():
    one = {**ONE, "shared_error": 8.0}
    mean = averaged(NONE, one)
    assert mean["shared_error"] == 2.0
    mean = averaged(mean, one)
    assert mean["shared_error"] == pytest.approx(2.0 / math.sqrt(2))
    for _ in range(120):
        mean = averaged(mean, one)
    assert mean["shared_error"] == pytest.approx(2.0 * math.sqrt((1 - MEMORY) ** 2 / (1 - MEMORY**2)))


def test_a_curvature_that_was_never_measured_is_the_mean_of_what_it_may_be():
    drawn = np.random.default_rng(0).normal(0.0, DOUBT, 1_000_000)
    assert curvature(NONE) == pytest.approx(BEND + drawn[drawn > 0].mean(), rel=0.01)
    assert curvature({**NONE, "curvature": 3.0, "curvature_error": 1e9}) == pytest.approx(curvature(NONE), rel=1e-6)


def test_a_curvature_counts_as_far_as_it_is_known():
    """The posterior mean of a positive number, here by summing over its prior and the measurement's likelihood."""
    values = np.linspace(0.0, 20.0, 2_000_001)
    for measured, error in ((1.0, 0.5), (-2.0, 0.5), (4.0, 0.1), (0.3, 2.0)):
        weights = np.exp(-0.5 * (values / DOUBT) ** 2 - 0.5 * ((values - measured) / error) ** 2)
        known = {**NONE, "curvature": measured, "curvature_error": error}
        assert curvature(known) == pytest.approx(BEND + (values * weights).sum() / weights.sum(), rel=1e-4)
    assert curvature({**NONE, "curvature": 4.0, "curvature_error": 0.0}) == pytest.approx(BEND + 4.0)
    assert curvature({**NONE, "curvature": -4.0, "curvature_error": 0.0}) == pytest.approx(BEND, abs=1e-6)


def test_the_error_of_the_curvature_is_that_of_a_mean_over_prompts():
    rng = np.random.default_rng(3)
    found = [observation_of(PAIRS, rng.normal(size=(32, 8)), rng.normal(size=8) + 1.0)[1] for _ in range(400)]
    spread = np.std([observation["curvature"] for observation in found])
    assert np.mean([observation["curvature_error"] for observation in found]) == pytest.approx(spread, rel=0.15)
    scores = rng.normal(size=(32, 1))
    assert observation_of(PAIRS, scores, np.zeros(1))[1]["curvature_error"] == pytest.approx(scores.std())


def test_averages_count_the_first_generations_equally_and_then_fade():
    one = {**ONE, "curvature": 2.0, "success_rate": 0.0}
    two = {**one, "power": 12.0}
    mean = averaged(averaged(NONE, one), two)
    assert (mean["power"], mean["curvature"], mean["seen"]) == (2.0, 1.0, 2)
    for _ in range(80):
        mean = averaged(mean, two)
    assert mean["power"] == pytest.approx(3.0, abs=1e-3)
    assert averaged(mean, {}) is mean


AVERAGES = {**NONE, "power": 1.0, "shared": 0.5, "shared_error": 1e-6, "share": 0.0, "seen": 100}
OBSERVATION = {"length": 8.0, "spread": 2.0, "reward": 0.5, "slope": 8.0}
CURVED = {**AVERAGES, "curvature": 10.0 - BEND, "curvature_error": 0.0}


def test_the_best_step_ratio_is_where_the_model_has_its_maximum():
    best = best_step_ratio(CURVED, 0.5, OBSERVATION)
    values = {ratio: 4.0 * 0.5 * ratio - 10.0 * ratio**2 for ratio in (best, 0.9 * best, 1.1 * best)}
    assert max(values, key=values.__getitem__) == best == pytest.approx(0.1)
    assert best_step_ratio({**CURVED, "curvature": 0.0}, 0.5, OBSERVATION) == 0.5
    assert best_step_ratio({**CURVED, "curvature": -1.0}, 0.5, OBSERVATION) == 0.5
    assert best_step_ratio(CURVED, 0.5, {**OBSERVATION, "slope": 4.0}) == pytest.approx(best / 2)


@pytest.mark.parametrize("start", [1e-6, 0.01, 10.0, 1e6])
def test_wherever_it_starts_it_gets_to_the_same_step_ratio(start):
    rule, state = Adaptive(start=start), {}
    for _ in range(30):
        alpha, state = rule.update(state, Situation(0.02, 32, OBSERVATION, CURVED))
        assert alpha * 8.0 / (32 * 0.02) <= rule.max_step_ratio + 1e-12
    assert state["step_ratio"] == pytest.approx(0.1)


def test_it_changes_by_at_most_a_factor_of_32():
    rule = Adaptive()
    flat = Situation(0.02, 32, OBSERVATION, {**CURVED, "curvature": 0.0})
    assert rule.update({"step_ratio": 0.03125}, flat)[1]["step_ratio"] == 1.0
    steep = Situation(0.02, 32, OBSERVATION, {**CURVED, "curvature": 1e6})
    assert rule.update({"step_ratio": 1.0}, steep)[1]["step_ratio"] == 0.03125
    assert rule.update({"step_ratio": 0.05}, steep)[1]["step_ratio"] == FLOOR * rule.max_step_ratio


def test_a_schedule_multiplies_the_step_but_never_beyond_the_longest():
    rule, curved = Adaptive(), Situation(0.02, 32, OBSERVATION, CURVED)
    plain, state = rule.update({}, curved)
    halved, same = rule.update({}, replace(curved, factor=0.5))
    assert halved == pytest.approx(plain / 2)
    assert same == state
    grown, _ = rule.update({}, replace(curved, factor=1e6))
    assert grown * 8.0 / (32 * 0.02) == pytest.approx(rule.max_step_ratio)


def test_after_a_collapse_the_longest_step_is_half():
    rule = Adaptive()
    assert rule.rolled_back({"step_ratio": 0.2})["step_ratio"] == pytest.approx(0.1)
    state = rule.rolled_back(rule.rolled_back({"step_ratio": 0.5}))
    flat = Situation(0.02, 32, OBSERVATION, {**CURVED, "curvature": 0.0})
    _, state = rule.update(state, flat)
    assert state["step_ratio"] == 0.125


def test_after_collapses_the_longest_step_grows_to_what_it_was():
    rule, state = Adaptive(), {"step_ratio": 1.25}
    for _ in range(15):
        state = rule.rolled_back(state)
    flat, ratios = Situation(0.02, 32, OBSERVATION, {**CURVED, "curvature": 0.0}), []
    for _ in range(200):
        _, state = rule.update(state, flat)
        ratios.append(state["step_ratio"])
    assert ratios[0] == 0.05 * rule.max_step_ratio
    assert ratios[32] == pytest.approx(2 * ratios[0], rel=0.01)
    assert ratios == sorted(ratios)
    assert (ratios[-1], state["factor"]) == (rule.max_step_ratio, 1.0)
    assert rule.update(state, replace(flat, observation={**OBSERVATION, "length": 0.0}))[1] == state


def test_tied_members_do_not_enter_the_averages():
    scores = np.full((30, 2), 0.1)
    strategy = strategies.create(Config(population=30, sigma=0.02))
    plan = strategy.ask({}, 0)
    step = strategy.tell({}, plan, Feedback(scores, np.array([0.15, 0.15]), 0.5))
    assert step.state["averages"] == dict(NONE)
    assert step.alpha == 0.0


def test_an_unperturbed_model_without_a_score_leaves_the_averages_of_the_others():
    mean = averaged(averaged(NONE, {**ONE, "curvature": 2.0, "success_rate": 0.25}), ONE)
    assert (mean["curvature"], mean["success_rate"]) == (1.0, 0.25)


def test_the_unperturbed_model_is_compared_on_prompts_that_both_answered():
    scores = np.random.default_rng(2).normal(size=(32, 3))
    found = observation_of(PAIRS, scores, np.array([1.0, np.nan, 3.0]))[1]
    assert found["unperturbed"] == 2.0
    assert found["curvature"] == pytest.approx(2.0 - scores[:, [0, 2]].mean())


def test_the_unperturbed_reward_is_what_it_scored_on_all_its_prompts_as_the_ledger_has_it():
    scores = np.random.default_rng(2).normal(size=(32, 3))
    scores[:, 0] = np.nan
    found = observation_of(PAIRS, scores, np.array([1.0, 2.0, 6.0]))[1]
    assert found["unperturbed"] == 3.0
    assert found["curvature"] == pytest.approx(4.0 - scores[:, 1:].mean())


def test_rewards_beyond_arithmetic_say_nothing():
    scores = np.random.default_rng(2).normal(size=(32, 3)) * 1e200
    with np.errstate(all="ignore"):
        assert observation_of(PAIRS, scores, scores[0])[1] == {}


def test_a_start_ten_times_too_large_does_no_harm():
    good = climb(Config(population=32, sigma=0.02), 40).rewards
    for alpha in (0.01, 0.6):  # σ/2, and ten times what is good
        assert climb(Config(population=32, sigma=0.02, alpha=alpha, step_size="adaptive"), 40).rewards == good
    far = climb(Config(population=32, sigma=0.02, alpha=1e-5, step_size="adaptive"), 40).rewards
    assert far[-1] == pytest.approx(good[-1], abs=0.02)


def test_rounding_noise_and_what_cannot_be_squared_are_no_news_and_no_step():
    rule = Adaptive()
    for spread, reward in ((0.0, 1.0), (3e-17, 0.2), (1e-200, 1e-200), (0.0, 0.0)):
        observation = {"length": 1.0, "spread": spread, "reward": reward, "slope": 1.0, "power": 1.0, "shared": 1.0}
        assert averaged(NONE, {**observation, "share": 0.5}) is NONE
        assert rule.update({"step_ratio": 0.3}, Situation(0.02, 32, observation, NONE)) == (0.0, {"step_ratio": 0.3})


def test_an_unperturbed_model_that_is_first_scored_late_counts_as_it_is():
    blind = {"spread": 1.0, "reward": 0.0, "slope": 2.0, "power": 1.0, "shared": 1.0, "share": 0.0, "length": 1.0}
    mean = NONE
    for _ in range(5):
        mean = averaged(mean, blind)
    mean = averaged(mean, {**blind, "curvature": 3.0, "curvature_error": 0.1, "success_rate": 0.0})
    assert (mean["curvature"], mean["curvature_error"], mean["success_rate"]) == (3.0, 0.1, 0.0)
    after = averaged(mean, blind)
    assert (after["curvature"], after["curvature_error"]) == (3.0, 0.1)


def test_collapses_leave_a_step_that_still_moves():
    rule, state = Adaptive(), {"step_ratio": 0.02}
    for _ in range(10):
        state = rule.rolled_back(state)
    assert state["factor"] == 0.05
    assert state["step_ratio"] == 0.05 * rule.max_step_ratio
