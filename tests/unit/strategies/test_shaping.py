"""Shaping against straightforward formulas, and what must hold for any scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.strategies.base import Feedback, directions
from seedtune.strategies.shaping import (
    SHAPINGS,
    centered,
    centered_rank,
    combine,
    fill_missing,
    member_rewards,
    per_prompt,
    standardise,
    unshaped,
    zscore,
)

NAN = math.nan
EVERY = pytest.mark.parametrize("shape", SHAPINGS.values(), ids=SHAPINGS)
CENTRING = pytest.mark.parametrize("shape", [zscore, per_prompt, centered_rank])
DIVIDING = pytest.mark.parametrize("shape", [zscore, per_prompt])

# Multiples of 1/64 below 1000: sums of a few are exact, so that ties are ties however they are added up.
numbers = st.integers(-64_000, 64_000).map(lambda k: k / 64)
matrices = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=numbers)
ragged = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.one_of(numbers, st.just(NAN)))


def plain_zscore(scores):
    rewards = [sum(row) / len(row) for row in scores.tolist()]
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [(r - mean) / std for r in rewards]


def plain_per_prompt(scores):
    columns = [[value - sum(column) / len(column) for value in column] for column in scores.T.tolist()]
    std = math.sqrt(sum(value**2 for column in columns for value in column) / scores.size)
    return [sum(row) / len(row) / std for row in zip(*columns, strict=True)]


def plain_centered_rank(scores):
    rewards = [sum(row) / len(row) for row in scores.tolist()]
    below = [sum(other < r for other in rewards) + (sum(other == r for other in rewards) - 1) / 2 for r in rewards]
    return [rank / (len(rewards) - 1) - 0.5 for rank in below]


def plain_mean(scores):
    return [sum(row) / len(row) for row in scores.tolist()]


PLAIN = [
    (zscore, plain_zscore),
    (per_prompt, plain_per_prompt),
    (centered_rank, plain_centered_rank),
    (unshaped, plain_mean),
]
SCORES = np.random.default_rng(0).normal(size=(8, 5)) * 3 + 7


@pytest.mark.parametrize(("shape", "plain"), PLAIN)
def test_the_formula_is_the_one_in_the_paper(shape, plain):
    np.testing.assert_allclose(shape(SCORES), plain(SCORES), rtol=1e-12)


def test_a_missing_score_counts_as_its_prompts_mean():
    scores = np.array([[1.0, 10.0], [3.0, NAN], [NAN, 20.0]])
    np.testing.assert_array_equal(fill_missing(scores), [[1.0, 10.0], [3.0, 15.0], [2.0, 20.0]])


def test_failing_on_a_hard_prompt_is_no_advantage():
    hard, easy = 1.0, 100.0
    scores = np.array([[hard, easy], [NAN, easy], [hard, easy], [hard, easy]])
    assert not zscore(scores).any()


def test_a_prompt_without_scores_does_not_count():
    with_gap = np.insert(SCORES, 2, NAN, axis=1)
    for shape in SHAPINGS.values():
        np.testing.assert_array_equal(shape(with_gap), shape(SCORES))


@EVERY
def test_a_member_without_scores_gets_zero_and_leaves_the_others_as_they_are(shape):
    failed = np.insert(SCORES, 3, NAN, axis=0)
    utilities = shape(failed)
    assert utilities[3] == 0.0
    expected = centered(SCORES) if shape is unshaped else shape(SCORES)  # no pair would cancel the mean reward
    np.testing.assert_array_equal(np.delete(utilities, 3), expected)


def test_a_member_without_scores_has_no_reward():
    assert math.isnan(member_rewards(np.array([[1.0, 2.0], [NAN, NAN]]))[1])


@EVERY
@pytest.mark.parametrize(
    "scores",
    [
        np.full((4, 3), 0.1),
        np.full((4, 3), -7.3e9),
        np.zeros((4, 3)),
        np.full((4, 3), NAN),
        np.array([[5.0, 6.0]]),
        np.empty((3, 0)),
        np.array([[0.1, NAN], [NAN, 0.1], [0.1, 0.1]]),
    ],
    ids=["equal", "equal-large", "zero", "all-nan", "one-member", "no-prompts", "equal-where-scored"],
)
def test_nothing_to_tell_members_apart_gives_all_zeros(shape, scores):
    utilities = shape(scores)
    assert utilities.shape == (scores.shape[0],)
    assert not utilities.any()


def test_two_tied_members_get_the_same_coefficient():
    first, second, third = standardise(np.array([1.0, 1.0, 4.0]))
    assert first == second < third


def test_tiny_rewards_are_told_apart():
    np.testing.assert_allclose(standardise(np.array([1e-14, 3e-14])), [-1.0, 1.0])


@EVERY
def test_scores_are_left_as_they_are(shape):
    scores = np.array([[1.0, NAN], [2.0, 3.0]])
    shape(before := scores.copy())
    np.testing.assert_array_equal(before, scores)


@CENTRING
@given(scores=matrices, shift=numbers, scale=st.sampled_from([0.25, 0.5, 2.0, 64.0]))
def test_shift_and_scale_of_the_rewards_change_nothing(shape, scores, shift, scale):
    np.testing.assert_allclose(shape(scores * scale + shift), shape(scores), atol=1e-9)


@EVERY
@given(scores=ragged, data=st.data())
def test_members_in_another_order_get_the_same_utilities(shape, scores, data):
    order = data.draw(st.permutations(range(scores.shape[0])))
    np.testing.assert_allclose(shape(scores[order]), shape(scores)[order], atol=1e-9)


@CENTRING
@given(scores=ragged)
def test_utilities_are_finite_and_sum_to_zero(shape, scores):
    utilities = shape(scores)
    assert np.isfinite(utilities).all()
    assert abs(utilities.sum()) < 1e-9


@given(scores=ragged)
def test_zscores_of_scored_members_have_unit_variance_or_are_all_zero(scores):
    utilities = zscore(scores)[~np.isnan(scores).all(axis=1)]
    assert not utilities.any() or abs(np.mean(utilities**2) - 1) < 1e-9


@given(scores=matrices)
def test_with_one_prompt_scores_and_per_prompt_scores_agree(scores):
    np.testing.assert_allclose(per_prompt(scores[:, :1]), zscore(scores[:, :1]), atol=1e-9)


@DIVIDING
def test_rewards_too_small_for_a_spread_are_a_tie(shape):
    scores = np.array([[1e-300], [-1e-300], [3e-300]])
    assert shape(scores).tolist() == [0.0, 0.0, 0.0]


def test_members_that_are_equal_over_all_prompts_are_tied_whatever_single_prompts_say():
    scores = np.random.default_rng(0).permuted(np.tile([0.1, 0.2, 0.3], (8, 1)), axis=1)
    assert not per_prompt(scores).any()
    assert not per_prompt(np.eye(3).repeat(2, axis=0)).any()


def test_tied_members_share_their_mean_rank():
    scores = np.array([[5.0], [1.0], [5.0], [9.0], [5.0]])
    assert centered_rank(scores).tolist() == [0.0, -0.5, 0.0, 0.5, 0.0]


def test_rewards_that_differ_by_rounding_share_a_rank():
    tied = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    assert member_rewards(tied)[0] != member_rewards(tied)[1]
    assert centered_rank(np.vstack([tied, [[1.0, 1.0, 1.0]]])).tolist() == [-0.25, -0.25, 0.5]


def test_ranks_are_over_the_members_that_have_a_reward():
    assert centered_rank(np.array([[NAN], [2.0], [1.0], [NAN], [3.0]])).tolist() == [0.0, 0.0, -0.5, 0.0, 0.5]
    assert centered_rank(np.array([[NAN], [2.0]])).tolist() == [0.0, 0.0]


@given(rewards=arrays(np.float64, st.integers(2, 9), elements=numbers))
def test_ranks_see_only_the_order_of_rewards(rewards):
    column = rewards[:, None]
    np.testing.assert_array_equal(centered_rank(np.cbrt(column) + 5), centered_rank(column))
    np.testing.assert_array_equal(centered_rank(column), plain_centered_rank(column))


def test_without_shaping_a_member_without_a_reward_gets_zero():
    assert unshaped(np.array([[-3.0, -1.0], [NAN, NAN], [4.0, 0.0]])).tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.parametrize("lost", [None, 3])
@pytest.mark.parametrize("antithetic", [True, False])
def test_without_shaping_the_mean_reward_moves_nothing(antithetic, lost):
    """What all members have in common is no direction, whether or not pairs cancel it."""
    scores = np.random.default_rng(0).normal(size=(8, 5))
    if lost is not None:
        scores[lost] = NAN
    strategy, moves = strategies.create(Config(sigma=0.1, shaping="none", population=8, antithetic=antithetic)), []
    for height in (0.0, 1000.0):
        plan, feedback = strategy.ask({}, 0), Feedback(scores + height)
        moves.append(list(directions(plan.members, strategy.tell({}, plan, feedback).coefficients).values()))
    np.testing.assert_allclose(moves[0], moves[1], atol=1e-9)
    if antithetic and lost is None:
        np.testing.assert_array_equal(strategy.shape(Feedback(scores)), unshaped(scores))


def test_without_shaping_the_mean_of_a_reward_that_one_member_lacks_moves_nothing():
    """The other reward, and so the sum, is there for every member."""
    scores = np.random.default_rng(0).normal(size=(2, 8, 5))
    scores[1, 3] = NAN
    settings = {"sigma": 0.1, "shaping": "none", "population": 8, "multi_objective_aggregation": "normalize_then_sum"}
    strategy, moves = strategies.create(Config(**settings), (1.0, 1.0)), []
    for height in (0.0, 1000.0):
        plan, each = strategy.ask({}, 0), scores + np.array([0.0, height])[:, None, None]
        feedback = Feedback(np.nansum(each, axis=0), by_reward=each)
        moves.append(list(directions(plan.members, strategy.tell({}, plan, feedback).coefficients).values()))
    np.testing.assert_allclose(moves[0], moves[1], atol=1e-9)


@pytest.mark.parametrize(
    ("population", "antithetic", "subspaces", "sizes"),
    [(10, True, 2, [3, 2]), (7, False, 3, [3, 2, 2]), (8, True, 2, [2, 2]), (8, True, 1, [4])],
)
def test_every_subspace_counts_alike(population, antithetic, subspaces, sizes):
    settings = {"sigma": 0.1, "population": population, "antithetic": antithetic, "subspaces": subspaces}
    strategy = strategies.create(Config(**settings))
    plan, feedback = strategy.ask({}, 0), Feedback(np.random.default_rng(0).normal(size=(population, 3)))
    plain, made = strategy.shape(feedback), strategy.tell({}, plan, feedback).coefficients
    factors = np.array(made) / np.array(plain)
    parts = [member.pair % subspaces for member in plan.members]
    expected = [sum(sizes) / subspaces / sizes[part] for part in parts]
    np.testing.assert_allclose(factors, expected)
    if len(set(sizes)) == 1:
        assert made == plain


THREE = np.random.default_rng(1).normal(size=(3, 8, 5)) * np.array([1.0, 100.0, 0.01])[:, None, None]
WEIGHTS = (1.0, 0.5, -2.0)


@pytest.mark.parametrize(("shape", "plain"), PLAIN)
def test_several_rewards_are_shaped_by_themselves_weighted_and_added(shape, plain):
    expected = sum(weight * np.array(plain(scores)) for weight, scores in zip(WEIGHTS, THREE, strict=True))
    np.testing.assert_allclose(combine(THREE, weights=WEIGHTS, shape=shape), expected, rtol=1e-11)


@EVERY
def test_one_reward_combined_is_that_reward_shaped(shape):
    np.testing.assert_array_equal(combine(SCORES[None], weights=[1.0], shape=shape), shape(SCORES))


@DIVIDING
def test_the_scale_of_a_reward_does_not_decide_how_much_it_counts(shape):
    scaled = THREE * np.array([1e6, 1e-6, 1.0])[:, None, None]
    np.testing.assert_allclose(
        combine(scaled, weights=WEIGHTS, shape=shape), combine(THREE, weights=WEIGHTS, shape=shape), atol=1e-9
    )


@EVERY
@pytest.mark.parametrize("value", [NAN, 0.3], ids=["not-applicable", "tied"])
def test_a_reward_that_tells_no_members_apart_adds_nothing(shape, value):
    more = np.concatenate([THREE, np.full((1, 8, 5), value)])
    np.testing.assert_array_equal(
        combine(more, weights=(*WEIGHTS, 9.0), shape=shape), combine(THREE, weights=WEIGHTS, shape=shape)
    )


@EVERY
def test_a_reward_that_does_not_apply_to_a_member_adds_nothing_to_it(shape):
    gap = THREE.copy()
    gap[1, 4] = NAN
    others = combine(THREE[[0, 2]], weights=(WEIGHTS[0], WEIGHTS[2]), shape=shape)
    assert combine(gap, weights=WEIGHTS, shape=shape)[4] == pytest.approx(others[4], rel=1e-12)


@EVERY
@given(order=st.permutations(range(8)))
def test_members_in_another_order_get_the_same_combined_utilities(shape, order):
    shuffled = combine(THREE[:, order], weights=WEIGHTS, shape=shape)
    np.testing.assert_allclose(shuffled, combine(THREE, weights=WEIGHTS, shape=shape)[order], atol=1e-9)


def test_a_weight_for_every_reward_is_required():
    with pytest.raises(ValueError, match="zip"):
        combine(THREE, weights=[1.0], shape=zscore)
