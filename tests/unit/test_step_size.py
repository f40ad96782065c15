"""The adaptive step against its formulas, computed here from dense vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tests.landscape import SIZE, climb, evaluate, noise

from seedtune import strategies
from seedtune.config import Config
from seedtune.strategies.averages import BEND, DOUBT, NONE, agreement, averaged, stiffness
from seedtune.strategies.base import Feedback, tell
from seedtune.strategies.guard import Guard
from seedtune.strategies.signal import gain, observe, odd_parts, radius_of, shared_power
from seedtune.strategies.stepsize import Adaptive, Situation, best_radius

PAIRS = strategies.create(Config(population=32, sigma=0.02))
SINGLES = strategies.create(Config(population=32, sigma=0.02, antithetic=False))


ONE = {"reward": 1.0, "spread": 2.0, "slope": 2.0, "power": 4.0, "shared": 4.0, "share": 0.5, "length": 1.0}
"""The signal of a generation without a centre."""


def signal_of(strategy, scores, centre=None, share=0.0):
    plan = strategy.ask({}, 0)
    feedback = Feedback(scores, centre, share)
    return plan, observe(plan, feedback, strategy.shape(feedback))


@pytest.mark.parametrize("strategy", [PAIRS, SINGLES], ids=["pairs", "singles"])
def test_the_step_has_the_length_that_was_decided(strategy):
    plan = strategy.ask({}, 0)
    step = tell(strategy, {}, plan, evaluate(plan, np.ones(SIZE)))
    moved = sum(term.weight * noise(term.generation, term.pair) for term in step.update.terms)
    radius = step.state["alpha"]["radius"]
    assert np.linalg.norm(moved) == pytest.approx(radius * plan.sigma * math.sqrt(SIZE), rel=0.03)
    assert radius_of(step.alpha, plan.sigma, step.signal, 32) == pytest.approx(radius, rel=1e-12)


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
    coefficients = strategy.shape(feedback)
    found = observe(plan, feedback, coefficients)
    for alpha in (0.1, 0.4):
        z = zip(plan.members, coefficients, strict=True)
        moved = theta + alpha / 32 * sum(c * m.sign * drawn[m.generation, m.pair] for m, c in z)
        predicted = gain(found, radius_of(alpha, sigma, found, 32), 1.0)
        assert predicted == pytest.approx(at(moved) - at(theta), rel=0.05)


def test_power_that_prompts_share_is_told_from_power_that_they_do_not():
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(4000, 1)), rng.normal(size=(4000, 5))
    assert shared_power(2.0 * common + own) == pytest.approx(4.0, rel=0.1)
    assert shared_power(own) == pytest.approx(0.0, abs=0.05)
    assert shared_power(own[:, :1]) == pytest.approx(float(np.mean(own[:, 0] ** 2)))


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
    assert signal_of(PAIRS, scores)[1] == {}


def test_members_against_the_centre_are_counted_with_ties_as_halves():
    scores = np.repeat(np.arange(32.0)[:, None], 2, axis=1)
    assert signal_of(PAIRS, scores, np.array([7.0, 7.0]))[1]["better"] == (24 + 0.5) / 32
    assert signal_of(PAIRS, scores, np.array([7.0, 7.0]))[1]["curvature"] == 7.0 - 15.5
    assert "curvature" not in signal_of(PAIRS, scores)[1]


def test_the_prompts_of_the_generation_count_fully_and_others_by_what_they_share():
    averages = {**NONE, "power": 4.0, "shared": 1.0, "share": 0.2}
    assert agreement(averages) == pytest.approx(0.2 + 0.8 * 0.25)
    assert agreement({**averages, "shared": -1.0}) == pytest.approx(0.2)
    assert agreement({**averages, "shared": 9.0}) == 1.0


def test_an_agreement_that_is_roughly_known_is_not_taken_for_none():
    rough = {**NONE, "power": 4.0, "shared": -1.0, "shared_error": 2.0}
    drawn = np.random.default_rng(0).normal(-1.0, 2.0, 1_000_000)
    assert agreement(rough) == pytest.approx(drawn[drawn > 0].mean() / 4.0, rel=0.01)
    assert agreement({**rough, "shared_error": 0.01}) < 1e-4
    assert agreement({**rough, "shared": 2.0, "shared_error": 0.01}) == pytest.approx(0.5)
    assert agreement({**rough, "shared_error": 1e300}) == 1.0


def test_the_error_of_what_prompts_share_is_that_of_the_mean_over_samples():
    rng = np.random.default_rng(5)
    found = [signal_of(PAIRS, rng.normal(size=(32, 6)) + rng.normal(size=(32, 1)))[1] for _ in range(400)]
    spread = np.std([signal["shared"] for signal in found])
    assert np.mean([signal["shared_error"] for signal in found]) == pytest.approx(spread, rel=0.15)


def test_the_error_of_an_average_shrinks_with_generations():
    one = {**ONE, "shared_error": 8.0}
    mean = averaged(NONE, one)
    assert mean["shared_error"] == 2.0
    mean = averaged(mean, one)
    assert mean["shared_error"] == pytest.approx(2.0 / math.sqrt(2))
    for _ in range(60):
        mean = averaged(mean, one)
    assert mean["shared_error"] == pytest.approx(2.0 * math.sqrt(0.2**2 / (1 - 0.8**2)))


def test_a_curvature_that_was_never_measured_is_the_mean_of_what_it_may_be():
    drawn = np.random.default_rng(0).normal(0.0, DOUBT, 1_000_000)
    assert stiffness(NONE) == pytest.approx(BEND + drawn[drawn > 0].mean(), rel=0.01)
    assert stiffness({**NONE, "curvature": 3.0, "curvature_error": 1e9}) == pytest.approx(stiffness(NONE), rel=1e-6)


def test_a_curvature_counts_as_far_as_it_is_known():
    """The posterior mean of a positive number, here by summing over its prior and the measurement's likelihood."""
    values = np.linspace(0.0, 20.0, 2_000_001)
    for curvature, error in ((1.0, 0.5), (-2.0, 0.5), (4.0, 0.1), (0.3, 2.0)):
        weights = np.exp(-0.5 * (values / DOUBT) ** 2 - 0.5 * ((values - curvature) / error) ** 2)
        known = {**NONE, "curvature": curvature, "curvature_error": error}
        assert stiffness(known) == pytest.approx(BEND + (values * weights).sum() / weights.sum(), rel=1e-4)
    assert stiffness({**NONE, "curvature": 4.0, "curvature_error": 0.0}) == pytest.approx(BEND + 4.0)
    assert stiffness({**NONE, "curvature": -4.0, "curvature_error": 0.0}) == pytest.approx(BEND, abs=1e-6)


def test_the_error_of_the_curvature_is_that_of_a_mean_over_prompts():
    rng = np.random.default_rng(3)
    found = [signal_of(PAIRS, rng.normal(size=(32, 8)), rng.normal(size=8) + 1.0)[1] for _ in range(400)]
    spread = np.std([signal["curvature"] for signal in found])
    assert np.mean([signal["curvature_error"] for signal in found]) == pytest.approx(spread, rel=0.15)
    scores = rng.normal(size=(32, 1))
    assert signal_of(PAIRS, scores, np.zeros(1))[1]["curvature_error"] == pytest.approx(scores.std())


def test_averages_count_the_first_generations_equally_and_then_fade():
    one = {**ONE, "curvature": 2.0, "better": 0.0}
    two = {**one, "slope": 6.0}
    mean = averaged(averaged(NONE, one), two)
    assert (mean["slope"], mean["power"], mean["curvature"], mean["seen"]) == (2.0, 1.0, 1.0, 2)
    for _ in range(40):
        mean = averaged(mean, two)
    assert mean["slope"] == pytest.approx(3.0, abs=1e-3)
    assert averaged(mean, {}) is mean


AVERAGES = {**NONE, "slope": 4.0, "power": 1.0, "shared": 0.5, "share": 0.0, "seen": 100}
SIGNAL = {"length": 8.0, "spread": 1.0, "reward": 0.5}
STIFF = {**AVERAGES, "curvature": 10.0 - BEND, "curvature_error": 0.0}


def test_the_best_radius_is_where_the_model_has_its_maximum():
    best = best_radius(STIFF, 0.5)
    values = {radius: 4.0 * 0.5 * radius - 10.0 * radius**2 for radius in (best, 0.9 * best, 1.1 * best)}
    assert max(values, key=values.__getitem__) == best == pytest.approx(0.1)
    assert best_radius({**STIFF, "curvature": 0.0}, 0.5) == 0.5
    assert best_radius({**STIFF, "curvature": -1.0}, 0.5) == 0.5


@pytest.mark.parametrize("start", [1e-6, 0.01, 10.0, 1e6])
def test_wherever_it_starts_it_gets_to_the_same_radius(start):
    rule, state = Adaptive(start=start), {}
    for _ in range(30):
        alpha, state = rule.step(state, Situation(0.02, 32, SIGNAL, STIFF))
        assert alpha * 8.0 / (32 * 0.02) <= 1.0 + 1e-12
    assert state["radius"] == pytest.approx(0.1)


def test_it_changes_by_at_most_a_factor_of_four():
    rule = Adaptive()
    flat = Situation(0.02, 32, SIGNAL, {**STIFF, "curvature": 0.0})
    assert rule.step({"radius": 0.1}, flat)[1]["radius"] == 0.4
    steep = Situation(0.02, 32, SIGNAL, {**STIFF, "curvature": 1e6})
    assert rule.step({"radius": 0.5}, steep)[1]["radius"] == 0.125
    assert rule.step({"radius": 0.02}, steep)[1]["radius"] == 0.02


def test_after_a_collapse_the_longest_step_is_half():
    rule = Adaptive()
    assert rule.shrink({"radius": 0.1})["radius"] == pytest.approx(0.05)
    state = rule.shrink(rule.shrink({"radius": 0.5}))
    flat = Situation(0.02, 32, SIGNAL, {**STIFF, "curvature": 0.0})
    for _ in range(5):
        _, state = rule.step(state, flat)
    assert state["radius"] == 0.125


def watched(rewards, guard=None):
    guard, state = guard or Guard(), {}
    for generation, reward in enumerate(rewards):
        state = guard.watch(state, reward, generation)
    return state


def test_the_guard_does_not_mind_noise_or_a_slow_trend():
    rng = np.random.default_rng(0)
    for trend in (0.0, 0.2, -0.05):
        state = {}
        for generation in range(300):
            state = Guard().watch(state, trend * generation + rng.normal(), generation)
            if state.get("collapsed") and trend >= 0.0:
                raise AssertionError(f"generation {generation} of trend {trend}")


def test_the_guard_sees_a_collapse_within_a_few_generations_and_names_the_best():
    rng = np.random.default_rng(1)
    rewards = [0.1 * g + 0.3 * rng.normal() for g in range(30)]
    state = watched(rewards)
    best = state["best_at"]
    for generation in range(30, 33):
        state = Guard().watch(state, -8.0, generation)
        if state["collapsed"]:
            break
    assert state["collapsed"]
    assert state["best_at"] == best >= 25
    assert "collapsed" not in Guard().back(state)


def test_rewards_that_begin_all_equal_are_no_reason_to_go_back():
    """Rare successes: the first generations tie at 0, and a later dip is no collapse."""
    for seed in range(50):
        draws = np.random.default_rng(seed).binomial(1, [0.0005] * 10 + [0.004] * 60, size=(256, 70)).T
        state = {}
        for generation, row in enumerate(draws):
            state = Guard().watch(state, float(row.mean()), generation, float(row.var()) / 256)
            assert not state.get("collapsed"), (seed, generation)


def test_tied_members_do_not_enter_the_averages():
    scores = np.full((30, 2), 0.1)
    strategy = strategies.create(Config(population=30, sigma=0.02))
    plan = strategy.ask({}, 0)
    step = tell(strategy, {}, plan, Feedback(scores, np.array([0.15, 0.15]), 0.5))
    assert step.state["averages"] == dict(NONE)
    assert step.alpha == 0.0


def test_a_centre_without_a_score_leaves_the_averages_of_the_others():
    mean = averaged(averaged(NONE, {**ONE, "curvature": 2.0, "better": 0.25}), ONE)
    assert (mean["curvature"], mean["better"]) == (1.0, 0.25)


def test_the_centre_is_compared_on_prompts_that_both_answered():
    scores = np.random.default_rng(2).normal(size=(32, 3))
    found = signal_of(PAIRS, scores, np.array([1.0, np.nan, 3.0]))[1]
    assert found["centre"] == 2.0
    assert found["curvature"] == pytest.approx(2.0 - scores[:, [0, 2]].mean())


def test_the_centre_is_what_it_scored_on_all_its_prompts_as_the_ledger_has_it():
    scores = np.random.default_rng(2).normal(size=(32, 3))
    scores[:, 0] = np.nan
    found = signal_of(PAIRS, scores, np.array([1.0, 2.0, 6.0]))[1]
    assert found["centre"] == 3.0
    assert found["curvature"] == pytest.approx(4.0 - scores[:, 1:].mean())


def test_rewards_beyond_arithmetic_say_nothing():
    scores = np.random.default_rng(2).normal(size=(32, 3)) * 1e200
    with np.errstate(all="ignore"):
        assert signal_of(PAIRS, scores, scores[0])[1] == {}


def test_a_start_ten_times_too_large_does_no_harm():
    good = climb(Config(population=32, sigma=0.02), 40).rewards
    wild = climb(Config(population=32, sigma=0.02, alpha=0.6, step_size="adaptive"), 40).rewards
    mild = climb(Config(population=32, sigma=0.02, alpha=0.01, step_size="adaptive"), 40).rewards
    assert min(wild) > -1.02
    assert wild[-1] == pytest.approx(good[-1], abs=0.02)
    assert mild[-1] == pytest.approx(good[-1], abs=0.04)


def test_rounding_noise_and_what_cannot_be_squared_are_no_news_and_no_step():
    rule = Adaptive()
    for spread, reward in ((0.0, 1.0), (3e-17, 0.2), (1e-200, 1e-200), (0.0, 0.0)):
        signal = {"length": 1.0, "spread": spread, "reward": reward, "slope": 1.0, "power": 1.0, "shared": 1.0}
        assert averaged(NONE, {**signal, "share": 0.5}) is NONE
        assert rule.step({"radius": 0.3}, Situation(0.02, 32, signal, NONE)) == (0.0, {"radius": 0.3})


def test_a_centre_that_is_first_scored_late_counts_as_it_is():
    blind = {"spread": 1.0, "reward": 0.0, "slope": 2.0, "power": 1.0, "shared": 1.0, "share": 0.0, "length": 1.0}
    mean = NONE
    for _ in range(5):
        mean = averaged(mean, blind)
    mean = averaged(mean, {**blind, "curvature": 3.0, "curvature_error": 0.1, "better": 0.0})
    assert (mean["curvature"], mean["curvature_error"], mean["better"]) == (3.0, 0.1, 0.0)
    after = averaged(mean, blind)
    assert (after["curvature"], after["curvature_error"]) == (3.0, 0.1)


def alarms(rewards):
    """(generation, best_at) of the first alarm, if there is one."""
    guard, state = Guard(), {}
    for generation, reward in enumerate(rewards):
        state = guard.watch(state, reward, generation)
        if state.get("collapsed"):
            return generation, state["best_at"]
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


def test_weights_of_which_nothing_can_be_scored_are_gone_back_on():
    guard, state = Guard(), {}
    for _ in range(9):
        state = guard.miss(state)
    assert not state["collapsed"]  # there is nothing to go back to: the reward function itself may be broken
    for generation, reward in enumerate((0.1, 0.2, 0.3)):
        state = guard.watch(state, reward, generation)
    found = []
    for _ in range(3):
        state = guard.miss(state)
        found.append(state["collapsed"])
    assert found == [False, False, True]
    assert "missed" not in guard.back(state)


def test_a_guard_begins_again_when_sigma_has_grown():
    """What a larger σ costs its members is not a collapse."""
    settings = {"population": 8, "sigma": 0.1, "collapse_guard": "yes", "alpha": 0.01}
    growing = strategies.create(Config(**settings, sigma_schedule={"warmup": 30}))
    rng, state = np.random.default_rng(0), {}
    for generation in range(60):
        plan = growing.ask(state, generation)
        scores = 1.0 - 10.0 * plan.sigma**2 + rng.normal(0, 0.005, (8, 4))
        step = tell(growing, state, plan, Feedback(scores, None, 0.0))
        state = step.state
        assert step.back_to is None


def test_collapses_leave_a_step_that_still_moves():
    rule, state = Adaptive(), {"radius": 0.02}
    for _ in range(10):
        state = rule.shrink(state)
    assert state["radius"] == state["factor"] == 0.05
