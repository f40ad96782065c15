"""The evolution strategy: which members it asks for, and the update it makes of their scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.landscape import climb, terms_of

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.strategies.base import Feedback, StatefulRule, update_of
from seedtune.types import Member, Plan, Term

PAIRS = strategies.create(Config(population=6, sigma=0.1, alpha=0.3))
SINGLES = strategies.create(Config(population=5, sigma=0.1, alpha=0.3, antithetic=False))
SCORES = np.random.default_rng(1).normal(size=(6, 4))


def test_pairs_are_both_signs_of_fresh_noise():
    plan = PAIRS.ask({}, 4)
    assert plan.members == tuple(Member(4, pair, sign) for pair in range(3) for sign in (1, -1))
    assert (plan.generation, plan.sigma) == (4, 0.1)


def test_without_pairs_every_member_has_noise_of_its_own():
    assert SINGLES.ask({}, 4).members == tuple(Member(4, pair, 1) for pair in range(5))


def test_asking_twice_gives_the_same_plan():
    assert PAIRS.ask({}, 9) == PAIRS.ask({}, 9)


def test_the_weight_of_a_pair_is_alpha_over_n_times_the_difference_of_its_coefficients():
    plan = PAIRS.ask({}, 2)
    step = PAIRS.tell({}, plan, Feedback(SCORES))
    z, terms = step.coefficients, terms_of(plan, step)
    expected = [(2, pair, 0.3 / 6 * (z[2 * pair] - z[2 * pair + 1])) for pair in range(3)]
    assert [(t.generation, t.pair) for t in terms] == [(g, p) for g, p, _ in expected]
    np.testing.assert_allclose([t.weight for t in terms], [w for *_, w in expected], rtol=1e-15)


def test_without_pairs_the_weight_is_alpha_over_n_times_the_coefficient():
    plan = SINGLES.ask({}, 2)
    step = SINGLES.tell({}, plan, Feedback(SCORES[:5]))
    assert terms_of(plan, step) == tuple(Term(2, i, 0.3 / 5 * z) for i, z in enumerate(step.coefficients))


@pytest.mark.parametrize("shaping", ["zscore", "per_prompt"])
@pytest.mark.parametrize("scores", [np.full((6, 4), 0.3), np.full((6, 4), math.nan)], ids=["tied", "failed"])
def test_all_tied_or_failed_members_give_an_empty_update(shaping, scores):
    strategy = strategies.create(Config(population=6, sigma=0.1, alpha=0.3, shaping=shaping))
    plan = strategy.ask({}, 0)
    step = strategy.tell({}, plan, Feedback(scores))
    assert terms_of(plan, step) == ()
    assert step.coefficients == (0.0,) * 6


def test_a_pair_whose_members_tie_has_no_term():
    scores = SCORES.copy()
    scores[3] = scores[2]
    plan = PAIRS.ask({}, 0)
    assert [term.pair for term in terms_of(plan, PAIRS.tell({}, plan, Feedback(scores)))] == [0, 2]


def test_a_failed_member_leaves_its_twin_in_the_update():
    scores = SCORES.copy()
    scores[1] = math.nan
    plan = PAIRS.ask({}, 0)
    step = PAIRS.tell({}, plan, Feedback(scores))
    assert step.coefficients[1] == 0.0
    assert terms_of(plan, step)[0].weight == 0.3 / 6 * step.coefficients[0]


@given(order=st.permutations(range(6)))
def test_the_update_does_not_depend_on_the_order_of_the_members(order):
    plan = PAIRS.ask({}, 3)
    coefficients = [0.25, -1.5, 2.0, 0.125, -0.5, -0.375]
    shuffled = Plan(3, 0.1, tuple(plan.members[i] for i in order))
    assert update_of(shuffled, [coefficients[i] for i in order], 0.3) == update_of(plan, coefficients, 0.3)


def test_terms_come_in_ascending_order_with_reused_noise_first():
    plan = Plan(5, 0.1, (Member(5, 1, 1), Member(5, 0, 1), Member(2, 9, 1)))
    assert [(t.generation, t.pair) for t in update_of(plan, [1.0, 1.0, 1.0], 1.0).terms] == [
        (2, 9),
        (5, 0),
        (5, 1),
    ]


def test_a_coefficient_for_every_member_is_required():
    with pytest.raises(ValueError, match="zip"):
        update_of(PAIRS.ask({}, 0), [1.0], 0.3)


def test_the_step_of_subspaces_is_that_of_copes():
    """θ += α Σ_k P_k (1/N_k) Σ z ε: with the noise √K P_k ε that a member has, the weights are (α√K/N) z."""
    settings = {"population": 8, "sigma": 0.1, "alpha": 0.3, "antithetic": False}
    copes, control = (strategies.create(Config(**settings, subspaces=k)) for k in (4, 1))
    scores = np.random.default_rng(0).normal(size=(8, 2))
    plans = [one.ask({}, 0) for one in (copes, control)]
    steps = [one.tell({}, plan, Feedback(scores)) for one, plan in zip((copes, control), plans, strict=True)]
    made, plain = ([term.weight for term in terms_of(*pair)] for pair in zip(plans, steps, strict=True))
    np.testing.assert_allclose(made, [2.0 * w for w in plain], rtol=1e-14)


def test_without_sigma_there_is_no_strategy():
    with pytest.raises(ConfigError, match=r"sigma is not known: a run measures it with its model\. Give sigma"):
        strategies.create(Config())


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.3}, {"alpha": 0.3, "rollback_on_fall": "yes"}], ids=str)
def test_every_recorded_state_is_that_of_a_rule_and_a_rollback_is_one_of_all_rules(settings):
    def fall(scores, generation):
        if 12 <= generation < 20:
            scores -= 5.0

    config = Config(population=32, sigma=0.02, **settings)
    rules, records = strategies.create(config).rules, climb(config, 24, fall).records
    assert all(isinstance(rule, StatefulRule) for rule in rules.values())
    assert all(record.state.keys() <= rules.keys() for record in records)
    backs = [index for index, record in enumerate(records) if record.rollback_to is not None]
    assert bool(backs) is config.rolls_back
    for index in backs:
        before, after = records[index - 1].state, records[index].state
        for name, rule in rules.items():
            assert after[name] == rule.rolled_back(before.get(name, rule.init()))
        assert records[index].rollback_to == after["watch"]["best_at"] <= index


@pytest.mark.parametrize(("population", "prompts", "every"), [(32, 8, 5), (4, 2, 160), (160, 8, 1)])
def test_the_watched_prompts_are_answered_for_a_twentieth_of_the_rollouts(population, prompts, every):
    strategy = strategies.create(Config(population=population, prompts_per_generation=prompts, sigma=0.1))
    times = [generation for generation in range(4 * every) if strategy.watches(strategy.ask({}, generation))]
    assert times == [0, every, 2 * every, 3 * every]


@pytest.mark.parametrize("settings", [{"alpha": 0.1}, {"rollback_on_fall": "no"}], ids=str)
def test_nothing_is_watched_where_a_run_does_not_go_back(settings):
    strategy = strategies.create(Config(sigma=0.1, **settings))
    assert not any(strategy.watches(strategy.ask({}, generation)) for generation in range(9))
