"""The step-size rule: α as given, or steps whose length follows from agreement and cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.landscape import SIZE, evaluate, noise, terms_of

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.strategies.evidence import NOTHING, Evidence
from seedtune.strategies.state_schema import check_state
from seedtune.strategies.step_size import (
    AGREEMENT,
    COST,
    DOUBT,
    GAIN,
    LEAST_AGREEMENT,
    LEAST_COST,
    LONGEST,
    MEMORY,
    RECOVERY,
    StepSize,
    length_of,
    step_ratio,
)
from seedtune.types import Member, Plan

AUTO = StepSize()
UTILITIES = (1.0, -0.5, 0.25, 2.0, -1.0, -1.75, 0.5, -0.5)


def plan_of(population: int = 8, sigma: float = 0.02, *, antithetic: bool = True) -> Plan:
    return strategies.create(Config(population=population, sigma=sigma, antithetic=antithetic)).ask({}, 0)


def ratio_of(alpha: float, plan: Plan, utilities=UTILITIES) -> float:
    """The step's length over that of a member's perturbation."""
    return alpha * length_of(plan, utilities) / (len(plan.members) * plan.sigma)


def after(evidence: Evidence, generations: int, plan: Plan | None = None) -> tuple[float, dict]:
    """The step ratio, and the state, after generations that all show the same."""
    plan, state, alpha = plan or plan_of(), {}, 0.0
    utilities = UTILITIES * (len(plan.members) // len(UTILITIES))
    for _ in range(generations):
        alpha, state = AUTO.update(state, plan, utilities, evidence, 1.0)
    return ratio_of(alpha, plan, utilities), dict(state)


# --------------------------------------------------------------------------------------------------- α is given


def test_a_given_alpha_is_the_step_whatever_the_evidence():
    given_alpha = StepSize(0.3)
    assert given_alpha.update({}, plan_of(), UTILITIES, Evidence(0.9, 0.1), 1.0) == (0.3, {})
    assert given_alpha.update({}, plan_of(), UTILITIES, NOTHING, 0.5) == (0.15, {})


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_without_a_difference_between_members_there_is_no_step_and_nothing_is_learned(alpha):
    state = {"factor": 0.5}
    assert StepSize(alpha).update(state, plan_of(), (0.0,) * 8, Evidence(0.9, 0.1), 1.0) == (0.0, state)
    assert StepSize(alpha).update({}, plan_of(), (1.0, 1.0) * 4, NOTHING, 1.0) == (0.0, {})  # pairs cancel


# -------------------------------------------------------------------------------------------------- the length


@pytest.mark.parametrize("shaping", ["zscore", "centered_rank", "none"])
@pytest.mark.parametrize("antithetic", [True, False], ids=["pairs", "singles"])
def test_the_step_is_as_long_as_its_ratio_says_in_perturbations_of_a_member(shaping, antithetic):
    settings = {"population": 32, "sigma": 0.02, "shaping": shaping, "antithetic": antithetic}
    strategy = strategies.create(Config(**settings))
    plan = strategy.ask({}, 0)
    step = strategy.tell({}, plan, evaluate(plan, np.ones(SIZE)))
    moved = sum(term.weight * noise(term.generation, term.pair) for term in terms_of(plan, step))
    ratio = step_ratio(step.state["step_size"], 16 if antithetic else 32)
    assert 0.0 < ratio <= LONGEST
    assert np.linalg.norm(moved) == pytest.approx(ratio * plan.sigma * math.sqrt(SIZE), rel=0.03)


def test_rewards_of_another_scale_and_sigma_make_the_same_step_in_perturbations():
    alpha, state = AUTO.update({}, plan_of(), UTILITIES, NOTHING, 1.0)
    larger = tuple(1000.0 * z for z in UTILITIES)
    other, same = AUTO.update({}, plan_of(sigma=0.5), larger, NOTHING, 1.0)
    assert ratio_of(other, plan_of(sigma=0.5), larger) == pytest.approx(ratio_of(alpha, plan_of()))
    assert same == state


@given(order=st.permutations(range(8)))
def test_the_order_of_the_members_changes_no_bit_of_the_length(order):
    plan = plan_of()
    shuffled = Plan(0, plan.sigma, tuple(plan.members[place] for place in order))
    assert length_of(shuffled, [UTILITIES[place] for place in order]) == length_of(plan, UTILITIES)


def test_a_pair_counts_by_its_difference():
    plan = Plan(0, 0.1, (Member(0, 0, 1), Member(0, 0, -1), Member(0, 1, 1)))
    assert length_of(plan, (3.0, 1.0, 5.0)) == math.hypot(2.0, 5.0)


def test_one_pair_makes_a_step_too():
    alpha, _ = AUTO.update({}, plan_of(2), (1.0, -1.0), NOTHING, 1.0)
    assert ratio_of(alpha, plan_of(2), (1.0, -1.0)) == pytest.approx(GAIN * AGREEMENT / COST)


# ------------------------------------------------------------------------------------------ agreement and cost


def known(agreement: float, cost: float, seen: int = MEMORY) -> dict[str, float]:
    return {"seen": seen, "agreement": agreement, "cost": cost}


@pytest.mark.parametrize("samples", [1, 8, 16, 64])
@pytest.mark.parametrize(("agreement", "cost"), [(0.2, 0.8), (0.6, 1.5), (0.9, 3.0), (0.05, 0.4)])
def test_the_ratio_is_the_best_of_the_model_of_the_gain(samples, agreement, cost):
    """Gain(ρ)/s = 2·GAIN·√Q·κ·ρ − c·ρ², with κ and c between what is usual and what was seen, κ less its error."""
    weight = MEMORY / (MEMORY + DOUBT)
    kappa, dear = AGREEMENT + weight * (agreement - AGREEMENT), COST + weight * (cost - COST)
    kappa -= weight * math.sqrt(2 / samples) / math.sqrt(MEMORY)
    ratios = np.linspace(0.0, LONGEST, 100_001)
    gains = 2 * GAIN * math.sqrt(samples) * max(LEAST_AGREEMENT, kappa) * ratios - max(LEAST_COST, dear) * ratios**2
    assert step_ratio(known(agreement, cost), samples) == pytest.approx(ratios[gains.argmax()], abs=2e-5)


def test_more_agreement_makes_longer_steps_and_more_cost_shorter_ones():
    ratios = [step_ratio(known(kappa, 1.0), 16) for kappa in (0.1, 0.2, 0.3)]
    assert 0.0 < ratios[0] < ratios[1] < ratios[2] < LONGEST
    costly = [step_ratio(known(0.3, cost), 16) for cost in (1.0, 2.0, 3.0)]
    assert LONGEST > costly[0] > costly[1] > costly[2] > 0.0


def test_steps_have_a_shortest_and_a_longest():
    assert step_ratio(known(1.0, -10.0), 1000) == LONGEST
    assert step_ratio(known(-1.0, 1.0), 16) == step_ratio(known(0.0, 1.0), 16) > 0.0
    assert step_ratio(known(0.3, -10.0), 2) == step_ratio(known(0.3, -0.5), 2)  # the cost has a lower bound


def test_agreement_that_may_be_chance_is_not_stepped_on():
    """Sixteen samples tell an average of 32 generations to ± 0.06."""
    chance = math.sqrt(2 / 16 / MEMORY)
    sure, doubtful = (step_ratio(known(kappa, 1.0), 16) for kappa in (0.2, chance / 2))
    assert doubtful == step_ratio(known(-1.0, 1.0), 16) < sure
    assert step_ratio(known(0.2, 1.0), 16) < step_ratio(known(0.2, 1.0), 64) / 2  # surer, and of more samples
    assert step_ratio(known(0.3, 1.0, 1), 16) < step_ratio(known(0.3, 1.0, 8), 16)


@pytest.mark.parametrize("generations", [1, 5, 50])
@pytest.mark.parametrize("cost", [None, 5.0])
def test_a_run_of_whose_agreement_nothing_is_known_takes_the_usual_step(generations, cost):
    usual = GAIN * math.sqrt(4) * AGREEMENT / COST
    assert after(Evidence(None, cost), generations) == (pytest.approx(usual), {})


def test_a_generation_that_shows_nothing_leaves_what_is_known():
    _, state = after(Evidence(0.6, 1.0), 3)
    assert AUTO.update(state, plan_of(), UTILITIES, NOTHING, 1.0)[1] == state


def test_a_cost_that_is_not_known_is_the_usual_one():
    assert after(Evidence(0.6, None), 3)[1]["cost"] == COST


def test_what_was_seen_counts_more_the_longer_it_was_seen():
    once, often = (after(Evidence(0.9, 1.0), seen, plan_of(32))[0] for seen in (1, 3 * MEMORY))
    assert after(NOTHING, 1, plan_of(32))[0] < once < often
    assert after(Evidence(0.6, 1.0), 3 * MEMORY)[1] == {"seen": MEMORY, "agreement": 0.6, "cost": 1.0}


def test_evidence_is_a_mean_at_first_and_then_fades():
    state, shown = {}, [0.1 * (place % 7) for place in range(MEMORY)]
    for agreement in shown:
        _, state = AUTO.update(state, plan_of(), UTILITIES, Evidence(agreement, 1.0), 1.0)
    assert state["agreement"] == pytest.approx(np.mean(shown))
    _, state = AUTO.update(state, plan_of(), UTILITIES, Evidence(1.0, 1.0), 1.0)
    assert state["agreement"] == pytest.approx(np.mean(shown) + (1.0 - np.mean(shown)) / MEMORY)


numbers = st.floats(-1e300, 1e300) | st.none()


@given(shown=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=12))
def test_no_evidence_leads_out_of_the_limits_or_to_a_state_that_a_ledger_refuses(shown):
    state = {}
    for agreement, cost in shown:
        alpha, state = AUTO.update(state, plan_of(), UTILITIES, Evidence(agreement, cost), 1.0)
        assert 0.0 < ratio_of(alpha, plan_of()) <= LONGEST * 1.001
        check_state({"step_size": state})


# ------------------------------------------------------------------------------------------ schedule, rollback


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_a_schedule_multiplies_the_step(alpha):
    rule = StepSize(alpha)
    whole, state = rule.update({}, plan_of(), UTILITIES, NOTHING, 1.0)
    half, same = rule.update({}, plan_of(), UTILITIES, NOTHING, 0.5)
    assert (half, same) == (0.5 * whole, state)


@pytest.mark.parametrize("alpha", [None, 0.3])
def test_a_rollback_halves_the_step_which_grows_again_to_its_whole_length(alpha):
    rule = StepSize(alpha)
    whole, state = rule.update({}, plan_of(), UTILITIES, NOTHING, 1.0)
    state, steps = rule.rolled_back(rule.rolled_back(state)), []
    for _ in range(80):
        step, state = rule.update(state, plan_of(), UTILITIES, NOTHING, 1.0)
        steps.append(step)
    assert steps[0] == pytest.approx(whole / 4)
    assert steps[32] == pytest.approx(whole / 2, rel=0.01)
    assert steps[1] == pytest.approx(RECOVERY * steps[0])
    assert steps[-1] == pytest.approx(whole)
    assert "factor" not in state
