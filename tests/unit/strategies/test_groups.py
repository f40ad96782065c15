"""Members that answered prompts of different generations: what they are compared by."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.run import metrics
from seedtune.strategies.base import Feedback
from seedtune.strategies.shaping import comparable, member_rewards
from seedtune.types import Member, Plan

NAN = math.nan
SHAPES = ["zscore", "centered_rank", "none"]

# Two generations: the first two members answered prompts 0 and 1, the others prompts 2 to 4.
SCORES = np.array(
    [
        [1.0, 2.0, NAN, NAN, NAN],
        [3.0, NAN, NAN, NAN, NAN],
        [NAN, NAN, 100.0, 101.0, 102.0],
        [NAN, NAN, 103.0, NAN, 104.0],
        [NAN, NAN, NAN, NAN, NAN],
    ]
)
GROUPS = [6, 6, 7, 7, 7]
MEMBERS = (Member(6, 0, 1), Member(6, 0, -1), Member(7, 0, 1), Member(7, 0, -1), Member(7, 1, 1))

numbers = st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-100) | st.sampled_from([0.0, 1.0, 1e15, NAN])
groups = st.lists(st.integers(0, 2), min_size=6, max_size=6)


def shaped(shaping: str, scores: np.ndarray, groups: list[int]) -> np.ndarray:
    return np.array(strategies.create(Config(sigma=0.1, shaping=shaping)).shape(Feedback(scores, groups=groups)))


def test_a_members_reward_is_the_mean_over_its_own_prompts():
    np.testing.assert_array_equal(member_rewards(SCORES, GROUPS), [1.5, 2.5, 101.0, 102.66666666666667, NAN])


def test_members_are_compared_by_their_distance_from_their_own_groups_mean():
    expected = [-0.5, 0.5, -0.8333333333333357, 0.8333333333333286, NAN]
    np.testing.assert_allclose(comparable(SCORES, GROUPS)[:, 0], expected, rtol=1e-14)


@pytest.mark.parametrize("shaping", SHAPES)
def test_a_generation_of_easy_prompts_is_not_taken_for_good_members(shaping):
    easier = SCORES.copy()
    easier[:2] += 1024.0
    np.testing.assert_array_equal(shaped(shaping, easier, GROUPS), shaped(shaping, SCORES, GROUPS))


@pytest.mark.parametrize("one", [[], [7] * 5], ids=["none", "one"])
def test_members_of_one_group_are_compared_by_their_scores_as_they_are(one):
    assert comparable(SCORES, one) is SCORES


@pytest.mark.parametrize("shaping", SHAPES)
def test_a_group_of_one_member_gets_zero(shaping):
    alone = shaped(shaping, SCORES, [5, 6, 7, 7, 7])
    np.testing.assert_allclose(alone[[0, 1, 4]], 0.0, atol=1e-12)
    assert alone[2] < 0.0 < alone[3]


@pytest.mark.parametrize("shaping", SHAPES)
def test_groups_that_tie_move_nothing_whatever_rounding_leaves(shaping):
    tied = np.array([[0.1 + 0.2], [0.3], [-100.3], [-100.3], [-100.3]])
    assert not shaped(shaping, tied, GROUPS).any()


@pytest.mark.parametrize("shaping", SHAPES)
@given(scores=arrays(np.float64, (6, 3), elements=numbers), groups=groups)
def test_utilities_are_a_function_of_member_rewards_and_groups_alone_bit_for_bit(shaping, scores, groups):
    columns = np.full((6, 9), NAN)
    for row, group in enumerate(groups):
        columns[row, 3 * group : 3 * group + 3] = scores[row]
    rewards = member_rewards(columns, groups)
    whole, again = shaped(shaping, columns, groups), shaped(shaping, rewards[:, None], groups)
    assert whole.tobytes() == again.tobytes()
    assert np.isfinite(whole).all()


def test_the_cost_compares_the_unperturbed_model_with_members_in_units_of_their_spread():
    unperturbed = np.array([NAN, NAN, 110.0, 111.0, 112.0])
    plan, feedback = Plan(7, 0.1, MEMBERS), Feedback(SCORES, unperturbed, groups=GROUPS)
    rewards = [1.5, 2.5, 101.0, 308 / 3]
    assert feedback.evidence(plan).cost == pytest.approx((111.0 - np.mean(rewards)) / np.std(rewards))


def test_members_that_answered_different_prompts_show_no_agreement_between_prompts():
    plan = Plan(7, 0.1, tuple(Member(7, pair, 1) for pair in range(4)))
    assert Feedback(np.nan_to_num(SCORES[:4]), groups=GROUPS[:4]).evidence(plan).agreement is None
    assert Feedback(np.nan_to_num(SCORES[:4]), groups=[7] * 4).evidence(plan).agreement is not None


def test_scores_of_other_generations_prompts_are_not_missing():
    asked = np.array([[True, True, False, False, False]] * 2 + [[False, False, True, True, True]] * 3)
    assert metrics.prompt_metrics(SCORES, asked)["frac_reward_missing"] == 5 / 13
