"""What a generation says about how far to step: agreement between prompts, and the cost of a perturbation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.run import metrics
from seedtune.run.records import Record
from seedtune.strategies.base import Feedback
from seedtune.strategies.evidence import NOTHING, agreement, cost
from seedtune.types import Member, Plan

NAN = math.nan


def plan_of(population: int, *, antithetic: bool = True) -> Plan:
    return strategies.create(Config(population=population, sigma=0.1, antithetic=antithetic)).ask({}, 0)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("antithetic", [True, False])
def test_prompts_that_say_the_same_agree_wholly(antithetic):
    scores = np.repeat(draw(8, 1), 5, axis=1)
    assert agreement(plan_of(8, antithetic=antithetic), scores) == 1.0


def test_prompts_that_have_nothing_in_common_agree_on_nothing_on_average():
    plan = plan_of(2000)
    found = [agreement(plan, draw(2000, 6, seed=seed)) for seed in range(60)]
    assert np.mean(found) == pytest.approx(0.0, abs=0.03)
    assert 15 <= sum(each > 0.0 for each in found) <= 45


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_common_part_is_told_from_what_each_prompt_adds(share):
    common, own = draw(4000, 1, seed=1), draw(4000, 4, seed=2)
    scores = math.sqrt(share) * common + math.sqrt(1 - share) * own
    expected = share / (share + (1 - share) / 4)  # of the variance of a mean of four prompts
    assert agreement(plan_of(4000), scores) == pytest.approx(expected, abs=0.05)


def shrunk(odd: np.ndarray) -> float:
    """The mean product of two prompts over the square of their mean, without the bias of such a ratio."""
    samples, prompts = odd.shape
    products = [np.mean(odd[:, i] * odd[:, j]) for i in range(prompts) for j in range(prompts) if i != j]
    return 1 - (1 - np.mean(products) / np.mean(odd.mean(axis=1) ** 2)) * (samples - 2) / samples


def test_agreement_is_the_mean_product_of_two_prompts_over_the_square_of_their_mean():
    scores = draw(12, 4)
    odd = (scores[::2] - scores[1::2]) / 2
    assert agreement(plan_of(12), scores) == pytest.approx(shrunk(odd), rel=1e-5)
    assert shrunk(np.repeat(odd[:, :1], 4, axis=1)) == pytest.approx(1.0)


@pytest.mark.parametrize("samples", [6, 16])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_few_samples_say_on_average_what_many_say(samples, share):
    plan, found = plan_of(2 * samples), []
    for seed in range(2000):
        common, own = np.split(draw(2 * samples, 6, seed=seed), [1], axis=1)
        scores = math.sqrt(share) * common + math.sqrt(1 - share) * own
        found.append(agreement(plan, scores))
    expected = share / (share + (1 - share) / 5)
    assert np.mean(found) == pytest.approx(expected, abs=4 * np.std(found) / math.sqrt(len(found)))


def test_of_single_members_the_distance_from_the_mean_counts():
    scores, singles = draw(7, 3), plan_of(7, antithetic=False)
    assert agreement(singles, scores) == pytest.approx(shrunk(scores - scores.mean(axis=0)), rel=1e-5)


def test_neither_the_scale_of_rewards_nor_how_hard_prompts_are_changes_agreement():
    scores = draw(16, 4)
    moved = 1000.0 * scores + np.array([0.0, 50.0, -3.0, 1e4])
    assert agreement(plan_of(16), moved) == pytest.approx(agreement(plan_of(16), scores), rel=1e-4)


def test_a_sample_that_lacks_a_member_says_nothing():
    scores = draw(8, 3)
    lost = scores.copy()
    lost[3] = NAN
    members = plan_of(8).members
    rest = Plan(0, 0.1, tuple(m for m in members if m.pair != 1))
    assert agreement(plan_of(8), lost) == pytest.approx(agreement(rest, np.delete(scores, [2, 3], axis=0)), rel=1e-5)


@pytest.mark.parametrize(
    ("members", "scores"),
    [
        (8, draw(8, 1)),
        (2, draw(2, 5)),
        (4, draw(4, 5)),
        (8, np.full((8, 5), 0.3)),
        (8, np.full((8, 5), NAN)),
        (4, np.array([[1.0, 2.0], [NAN, NAN], [0.0, 1.0], [2.0, 5.0]])),
        (8, np.where(np.arange(5) == 2, draw(8, 5), NAN)),
        (4, np.zeros((4, 0))),
    ],
    ids=[
        "one prompt",
        "one sample",
        "two samples",
        "ties",
        "failures",
        "one whole sample",
        "one scored prompt",
        "no prompts",
    ],
)
def test_where_nothing_can_be_compared_nothing_is_known(members, scores):
    assert agreement(plan_of(members), scores) is None


def test_members_of_different_generations_are_not_compared():
    members = tuple(Member(generation, 0, sign) for generation in (3, 4, 5) for sign in (1, -1))
    plan = Plan(4, 0.1, members)
    assert agreement(plan, draw(6, 3), groups=[3, 3, 4, 4, 4, 4]) is None
    assert agreement(plan, draw(6, 3), groups=[4] * 6) is not None


# ---------------------------------------------------------------------------------------------------------- cost


def test_the_cost_is_the_way_down_to_the_members_in_their_spread():
    rewards = [1.0, 2.0, 4.0, 5.0]
    assert cost(rewards, 4.5) == pytest.approx((4.5 - 3.0) / np.std(rewards))
    assert cost(rewards, 1.0) < 0.0
    assert cost([*rewards, NAN], 4.5) == cost(rewards, 4.5)


@pytest.mark.parametrize(
    ("rewards", "unperturbed"),
    [([], 1.0), ([NAN, NAN], 1.0), ([1.0, 2.0], None), ([1.0, 2.0], NAN), ([2.0, 2.0], 2.0), ([2.0, 2.0], 3.0)],
    ids=str,
)
def test_a_cost_of_which_a_part_is_missing_is_not_known(rewards, unperturbed):
    assert cost(rewards, unperturbed) is None


@given(rewards=st.permutations([0.1, 0.2, 0.3, 1e8, -1e8, 1e-9, 7.0]))
def test_the_order_of_members_does_not_change_a_bit_of_the_cost(rewards):
    assert cost(rewards, 0.1) == cost(sorted(rewards), 0.1)


numbers = st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-100) | st.sampled_from([0.0, 1.0, NAN])


@given(scores=arrays(np.float64, (6, 3), elements=numbers), unperturbed=arrays(np.float64, 3, elements=numbers))
def test_a_record_gives_the_same_evidence_as_the_scores_bit_for_bit(scores, unperturbed):
    plan, feedback = plan_of(6), Feedback(scores, unperturbed, watched=(0.5, None, 0.25))
    evidence = feedback.evidence(plan)
    record = Record(
        plan=plan,
        alpha=0.1,
        rewards=tuple(feedback.rewards.tolist()),
        coefficients=(0.0,) * 6,
        prompts=(0, 1, 2),
        reward_unperturbed=metrics.mean(unperturbed),
        tokens={},
        agreement=evidence.agreement,
        watched=tuple(evidence.watched),
    )
    assert Record.from_json(json.loads(json.dumps(record.to_json()))).evidence == evidence
    assert all(value is None or math.isfinite(value) for value in evidence[:2])


def test_without_scores_there_is_no_evidence():
    assert Feedback(np.full((6, 3), NAN), np.full(3, NAN)).evidence(plan_of(6)) == NOTHING
