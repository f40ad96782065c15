"""What every strategy promises, on a landscape that costs nothing to evaluate."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from tests.landscape import SIZE, Climb, applied, climb, evaluate

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.run.lineage import Lineage

SETTINGS: dict[str, Any] = {"population": 32, "sigma": 0.02}
FIXED = {**SETTINGS, "alpha": 0.02}

STRATEGIES: dict[str, dict[str, Any]] = {
    "es": FIXED,
    "es-single": {**FIXED, "antithetic": False},
    "es-per-prompt": {**FIXED, "shaping": "per_prompt"},
    "es-rewards-apart": {**FIXED, "multi_objective_aggregation": "normalize_then_sum"},
    "es-reuse": {**FIXED, "noise_reuse": 4},
    "es-decay": {**FIXED, "anchor_l2": 0.1, "anchor_l1": 1e-4},
    "es-watched": {**FIXED, "rollback_on_fall": "yes"},
    "auto": SETTINGS,
    "auto-single": {**SETTINGS, "antithetic": False},
    "auto-per-prompt": {**SETTINGS, "shaping": "per_prompt"},
    "auto-schedule": {**SETTINGS, "alpha_schedule": {"kind": "linear", "over": 40, "to": 3.0, "warmup": 2}},
    "auto-reuse-decay": {**SETTINGS, "noise_reuse": 3, "anchor_l2": 0.1},
    "auto-subspaces": {**SETTINGS, "subspaces": 4},
    "essam": {**FIXED, "lookahead": {"radius": 0.002}},
    "essam-f": {**FIXED, "lookahead": {"radius": 0.1, "probes": 10}},
    "essam-auto": {**SETTINGS, "lookahead": {"radius": 0.1, "probes": 10}},
}
"""Settings per strategy, and combinations, that climb the quadratic."""


@pytest.fixture(scope="module", params=STRATEGIES.values(), ids=STRATEGIES)
def config(request) -> Config:
    return Config.create(request.param)


@pytest.fixture(scope="module")
def run(config) -> Climb:
    """Ten generations, which no test changes."""
    return climb(config, 10)


@pytest.mark.no_cover
def test_it_climbs_a_noisy_quadratic(config):
    steps = 80 if config.lookahead.radius is None else 160
    rewards = climb(config, steps).rewards
    assert rewards[-1] > rewards[0] + 0.02
    assert np.mean(rewards[-10:]) > np.mean(rewards[:10])


def test_the_same_scores_give_the_same_run(config, run):
    again = climb(config, 10)
    assert run.theta.tobytes() == again.theta.tobytes()
    assert run.records == again.records


def test_the_order_in_which_results_arrive_does_not_matter(config, run):
    backwards = climb(config, 5, order=lambda count: list(range(count))[::-1])
    assert run.records[:5] == backwards.records


def test_members_are_distinct_and_perturbed(run):
    for record in run.records:
        assert len(set(record.plan.members)) == len(record.plan.members) >= 2
        assert all(member.sign for member in record.plan.members)


def test_it_does_not_change_the_scores(config):
    strategy = strategies.create(config)
    plan = strategy.ask({}, 0)
    feedback = evaluate(plan, np.ones(SIZE))
    feedback.scores[0, 1] = math.nan
    before = feedback.scores.copy()
    strategy.tell({}, plan, feedback)
    np.testing.assert_array_equal(before, feedback.scores)


def test_its_state_goes_through_the_ledger(run):
    for record in run.records:
        assert json.loads(json.dumps(record.state)) == record.state


def test_replaying_the_ledger_gives_the_weights_bit_for_bit(run):
    theta, base = np.ones(SIZE), np.ones(SIZE)
    for update in Lineage(run.records).updates(10):
        theta = applied(theta, base, update)
    assert theta.tobytes() == run.theta.tobytes()


def test_a_ledger_follows_from_its_own_rewards(config, run):
    """What an audit does: plans, steps and states again from recorded coefficients and evidence."""
    strategy = strategies.create(config)
    state = {}
    for record in run.records:
        assert strategy.ask(state, record.plan.generation) == record.plan
        step = strategy.decide(state, record.plan, record.coefficients, record.evidence)
        assert (step.alpha, step.decay, step.rollback_to) == (record.alpha, record.decay, record.rollback_to)
        assert json.loads(json.dumps(step.state)) == record.state
        state = record.state


def fail_some(scores, generation):
    scores[generation % len(scores)] = math.nan
    scores[:, 0][generation % 3 :: 3] = math.nan


def fail_all(scores, generation):
    if generation % 2:
        scores[:] = math.nan


def tie(scores, generation):
    if generation % 3:
        scores[:] = 0.1


@pytest.mark.parametrize("damage", [fail_some, fail_all, tie])
def test_it_survives_generations_that_fail_or_tie(config, damage):
    run = climb(config, 8, damage)
    assert np.isfinite(run.theta).all()
    assert all(math.isfinite(record.alpha) for record in run.records)


@pytest.mark.parametrize("value", [math.nan, 0.1], ids=["failed", "tied"])
def test_a_generation_without_a_difference_moves_nothing(config, value):
    """Not even by the pull to the base model, which is elsewhere by then."""

    def flat(scores, generation):
        if generation >= 4:
            scores[:] = value

    run, before = climb(config, 6, flat), climb(config, 4)
    assert run.theta.tobytes() == before.theta.tobytes() != np.ones(SIZE).tobytes()
    assert not any(any(record.coefficients) for record in run.records[4:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookahead": {"radius": 0.1}, "noise_reuse": 4}, "noise_reuse=4"),
        ({"lookahead": {"radius": 0.1, "probes": 64}}, "probes=64"),
        ({"lookahead": {"radius": 0.1, "probes": 9}}, "even"),
        ({"lookahead": {"probes": 4}}, "probes=4 needs lookahead.radius"),
        ({"lookahead": {"radius": 0.1, "probes": 4}, "subspaces": 4}, "subspaces=4"),
        ({"sigma": 0.5, "anchor_l2": 10.0}, r"sigma/2=0\.25 times anchor_l2=10 is more than 1"),
        ({"alpha": 0.3, "anchor_l2": 10.0}, "overshoot"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_with_the_fix(settings, message):
    with pytest.raises(ConfigError, match=message):
        Config.create({**SETTINGS, **settings})
