"""What steps realized of what their members had predicted."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.landscape import SIZE, climb, evaluate, noise, terms_of

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.strategies import step_estimates
from seedtune.strategies.base import Feedback, Situation
from seedtune.strategies.observation import observe
from seedtune.strategies.step_estimates import (
    MEMORY,
    SURE,
    PredictedGain,
    RunningAverages,
    WeighedValue,
    curvature,
    curvature_error,
    realized_fraction,
    reliability,
)
from seedtune.strategies.step_size import Adaptive

averaged, NONE = RunningAverages().update, RunningAverages().init()
OBSERVATION = {"reward": 1.0, "reward_error": 0.3, "slope": 4.0, "spread": 2.0, "length": 8.0}
LATER = {**OBSERVATION, "reward": 1.9, "reward_error": 0.4}
KNOWN = {**NONE, "curvature": 0.5, "curvature_error": 0.0}


def predicted_gain(observation, step_ratio, sigma, averages):
    """What is predicted of a step of eight members as long as ``step_ratio``."""
    now = Situation(sigma, 8, observation, averages)
    return PredictedGain().update({}, now, step_ratio * 8 * sigma / observation["length"])


def test_the_realized_fraction_is_the_gain_and_what_it_cost_over_the_predicted_gain():
    part, precision = realized_fraction(predicted_gain(OBSERVATION, 0.5, 1.0, KNOWN), LATER, 1.0)
    cost = curvature(KNOWN) * 2.0 * 0.25
    assert part == pytest.approx((0.9 + cost) / (4.0 * 0.5))
    assert 1.0 / precision == pytest.approx((0.3**2 + 0.4**2) / (4.0 * 0.5) ** 2 + SURE**2)


def test_a_long_step_says_less_where_the_curvature_is_not_known():
    error = curvature_error(NONE) * 2.0 * 1.0
    _, precision = realized_fraction(predicted_gain(OBSERVATION, 1.0, 1.0, NONE), LATER, 1.0)
    assert 1.0 / precision == pytest.approx((0.3**2 + 0.4**2 + error**2) / 16.0 + SURE**2)


def test_nothing_predicted_or_nothing_to_compare_says_nothing():
    assert PredictedGain().update({"gain": 1.0}, Situation(1.0, 8, OBSERVATION, NONE), 0.0) == {"gain": 1.0}
    assert predicted_gain({**OBSERVATION, "spread": 0.0}, 1.0, 1.0, NONE) == {}
    assert predicted_gain({**OBSERVATION, "slope": 0.0}, 1.0, 1.0, NONE) == {}
    blind = {name: value for name, value in OBSERVATION.items() if name != "reward_error"}
    assert predicted_gain(blind, 1.0, 1.0, NONE) == {}
    made = predicted_gain(OBSERVATION, 1.0, 1.0, NONE)
    assert realized_fraction({}, LATER, 1.0) == realized_fraction(made, blind, 1.0) == (0.0, 0.0)


def test_gains_under_another_sigma_say_nothing():
    made = predicted_gain(OBSERVATION, 1.0, 1.0, NONE)
    assert realized_fraction(made, LATER, 1.005)[1] > 0.0
    assert realized_fraction(made, LATER, 0.9) == realized_fraction(made, LATER, 1.1) == (0.0, 0.0)


def test_one_step_counts_as_at_most_all_or_the_opposite_of_its_predicted_gain():
    made = predicted_gain(OBSERVATION, 1.0, 1.0, NONE)
    assert realized_fraction(made, {**LATER, "reward": -1e6}, 1.0)[0] == -1.0
    assert realized_fraction(made, {**LATER, "reward": 1e6}, 1.0)[0] == 1.0


def test_steps_count_by_their_precision_and_fade():
    one = {**OBSERVATION, "power": 1.0, "shared": 0.0, "share": 1.0}
    mean = averaged(averaged(NONE, one, WeighedValue(0.2, 10.0)), one, WeighedValue(0.8, 30.0))
    old = MEMORY * 10.0
    assert mean["realized_fraction"] == pytest.approx((old * 0.2 + 30.0 * 0.8) / (old + 30.0))
    assert mean["realized_precision"] == pytest.approx(old + 30.0)
    assert averaged(mean, one)["realized_precision"] == pytest.approx(MEMORY * (old + 30.0))
    assert averaged(mean, {}, WeighedValue(9.0, 9.0)) is mean


def test_the_error_of_the_mean_reward_is_that_of_drawing_members_and_prompts():
    """Prompts are drawn from a normal distribution: the variance told is on average what Student's is."""
    rng, strategy = np.random.default_rng(4), strategies.create(Config(population=32))
    plan = strategy.ask({}, 0)

    def found(share, count):
        scores = rng.normal(size=(32, 1)) * 0.5 + rng.normal(size=(1, count))
        return observe(plan, Feedback(scores, None, share), strategy.shape(Feedback(scores)))

    members = 0.25 / 32
    for share, count in ((0.0, 16), (0.5, 8), (1.0, 8), (1.0, 2)):
        variance = np.mean([found(share, count)["reward_error"] ** 2 for _ in range(2000)])
        prompts = (count - 1) / (count - 3) / count if share < 1.0 else 0.0
        assert variance == pytest.approx(members + prompts, rel=0.1)
    assert "reward_error" not in found(0.5, 3)


def deceiving(plan, theta):
    """Members differ by chance alone, the same for equal members and prompts, on a slope that punishes every step."""
    scores = np.array([np.random.default_rng((m.generation, m.pair, m.sign + 1)).normal(size=8) for m in plan.members])
    away = float(np.mean((theta - 1.0) ** 2)) / plan.sigma**2
    return Feedback(scores - 0.2 * away, np.full(8, -0.2 * away), share=1.0)


def ratios(evaluate_at, generations):
    """The step ratio of every step of a run that answers all of its prompts in every generation."""
    strategy = strategies.create(Config(population=32, sigma=0.02))
    state, theta, found = {}, np.ones(SIZE), []
    for generation in range(generations):
        plan = strategy.ask(state, generation)
        step = strategy.tell(state, plan, evaluate_at(plan, theta))
        for term in terms_of(plan, step):
            theta = theta + term.weight * noise(term.generation, term.pair)
        state = step.state
        found.append(state["alpha"]["step_ratio"])
    return found


def test_chance_that_looks_like_a_slope_is_found_out_where_prompts_are_the_same_again(monkeypatch):
    steps = ratios(deceiving, generations=10)
    monkeypatch.setattr(step_estimates, "realized_fraction", lambda *_: step_estimates.UNKNOWN)
    blind = ratios(deceiving, generations=10)
    assert steps[0] == blind[0]
    assert np.mean(steps[1:]) < 0.6 * np.mean(blind[1:])


def test_predictions_that_are_realized_keep_steps_long():
    def honest(plan, theta):
        return replace(evaluate(plan, theta), share=1.0)

    assert min(ratios(honest, generations=10)[2:]) == Adaptive().max_step_ratio


def test_going_back_drops_the_predicted_gain():
    def fall(scores, generation):
        if generation >= 12:
            scores -= 5.0

    back = next(r for r in climb(Config(population=32, sigma=0.02), 16, fall).records if r.rollback_to is not None)
    assert "predicted_gain" not in back.state
    assert not {"realized_fraction", "realized_precision"} & set(back.state["averages"])


def test_a_judge_that_was_down_for_a_generation_does_not_stop_the_run():
    def down(plan, theta):
        feedback = replace(evaluate(plan, theta), share=1.0)
        lost = 1.0 if plan.generation == 5 else 0.0
        return replace(feedback, scores=feedback.scores - lost, unperturbed=feedback.unperturbed - lost)

    assert min(ratios(down, generations=14)[6:]) > 0.2 * Adaptive().max_step_ratio


def test_a_generation_that_moves_nothing_leaves_the_predicted_gain_of_the_last_step():
    def tie(scores, generation):
        if generation == 3:
            scores[:] = 0.1

    records = climb(Config(population=32, sigma=0.02), 5, tie).records
    assert records[3].state["predicted_gain"] == records[2].state["predicted_gain"]
    assert records[4].state["predicted_gain"] != records[3].state["predicted_gain"]


@pytest.mark.parametrize(
    "settings",
    [{"anchor_l2": 0.1}, {"anchor_l1": 0.1}, {"reward_batch": "all"}],
    ids=["l2", "l1", "compared"],
)
def test_nothing_is_predicted_where_more_than_the_step_moves_the_mean(settings):
    records = climb(Config(population=32, sigma=0.02, **settings), 3).records
    assert not any("predicted_gain" in record.state for record in records)
    assert all("predicted_gain" in record.state for record in climb(Config(population=32, sigma=0.02), 3).records)


@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e140, 1e300])
def test_nothing_infinite_reaches_the_state(size):
    observation = {name: value * size for name, value in OBSERVATION.items()} | {"length": 8.0}
    for ratio in (1e-12, 1.0, 1e12):
        made = predicted_gain(observation, ratio, 1.0, NONE)
        assert all(math.isfinite(value) for value in made.values())
        assert all(math.isfinite(value) for value in realized_fraction(made, {**observation, "reward": -size}, 1.0))


@pytest.mark.parametrize("shared", [-0.2, 0.0, 0.9])
def test_an_error_that_is_rounding_is_no_certainty(shared):
    """Two members without pairs differ from their mean by the same, so their estimates are equal."""
    nothing = {**NONE, "power": 1.0, "usual": 0.25, "seen": 100}
    assert reliability({**nothing, "shared": shared, "shared_error": 1e-17}) == reliability(nothing)
    assert reliability({**nothing, "shared": shared, "shared_error": 0.01}) == pytest.approx(max(shared, 0.0), abs=0.05)


def test_two_members_without_pairs_are_as_reliable_as_the_prior_says():
    strategy, state = strategies.create(Config(population=2, antithetic=False)), {}
    rng = np.random.default_rng(0)
    for generation in range(20):
        plan = strategy.ask(state, generation)
        state = strategy.tell(state, plan, Feedback(rng.normal(size=(2, 8)))).state
    averages = {name: v for name, v in state["averages"].items() if not name.startswith("realized")}
    assert reliability(averages) > 0.2
