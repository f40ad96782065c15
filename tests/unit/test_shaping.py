"""Shaping against straightforward formulas, and what must hold for any scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from seedtune.shaping import SHAPINGS, fill_missing, member_rewards, per_prompt, standardise, zscore

NAN = math.nan
BOTH = pytest.mark.parametrize("shape", SHAPINGS.values(), ids=SHAPINGS)

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


SCORES = np.random.default_rng(0).normal(size=(8, 5)) * 3 + 7


@pytest.mark.parametrize(("shape", "plain"), [(zscore, plain_zscore), (per_prompt, plain_per_prompt)])
def test_the_formula_is_the_one_in_the_paper(shape, plain):
    np.testing.assert_allclose(shape(SCORES), plain(SCORES), rtol=1e-12)


def test_a_missing_score_counts_as_its_prompts_mean():
    scores = np.array([[1.0, 10.0], [3.0, NAN], [NAN, 20.0]])
    np.testing.assert_array_equal(fill_missing(scores), [[1.0, 10.0], [3.0, 15.0], [2.0, 20.0]])


def test_failing_on_a_hard_prompt_is_no_advantage():
    hard, easy = 1.0, 100.0
    scores = np.array([[hard, easy], [NAN, easy], [hard, easy], [hard, easy]])
    assert not zscore(scores).any()


def test_a_prompt_that_nobody_scored_does_not_count():
    with_gap = np.insert(SCORES, 2, NAN, axis=1)
    for shape in SHAPINGS.values():
        np.testing.assert_array_equal(shape(with_gap), shape(SCORES))


@BOTH
def test_a_member_without_scores_gets_zero_and_leaves_the_others_as_they_are(shape):
    failed = np.insert(SCORES, 3, NAN, axis=0)
    coefficients = shape(failed)
    assert coefficients[3] == 0.0
    np.testing.assert_array_equal(np.delete(coefficients, 3), shape(SCORES))


def test_a_member_without_scores_has_no_reward():
    assert math.isnan(member_rewards(np.array([[1.0, 2.0], [NAN, NAN]]))[1])


@BOTH
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
    coefficients = shape(scores)
    assert coefficients.shape == (scores.shape[0],)
    assert not coefficients.any()


def test_two_tied_members_get_the_same_coefficient():
    first, second, third = standardise(np.array([1.0, 1.0, 4.0]))
    assert first == second < third


def test_tiny_rewards_are_told_apart():
    np.testing.assert_allclose(standardise(np.array([1e-14, 3e-14])), [-1.0, 1.0])


@BOTH
def test_scores_are_left_as_they_are(shape):
    scores = np.array([[1.0, NAN], [2.0, 3.0]])
    shape(before := scores.copy())
    np.testing.assert_array_equal(before, scores)


@BOTH
@given(scores=matrices, shift=numbers, scale=st.sampled_from([0.25, 0.5, 2.0, 64.0]))
def test_shift_and_scale_of_the_rewards_change_nothing(shape, scores, shift, scale):
    np.testing.assert_allclose(shape(scores * scale + shift), shape(scores), atol=1e-9)


@BOTH
@given(scores=ragged, data=st.data())
def test_members_in_another_order_get_the_same_coefficients(shape, scores, data):
    order = data.draw(st.permutations(range(scores.shape[0])))
    np.testing.assert_allclose(shape(scores[order]), shape(scores)[order], atol=1e-9)


@BOTH
@given(scores=ragged)
def test_coefficients_are_finite_and_sum_to_zero(shape, scores):
    coefficients = shape(scores)
    assert np.isfinite(coefficients).all()
    assert abs(coefficients.sum()) < 1e-9


@given(scores=ragged)
def test_zscores_of_scored_members_have_unit_variance_or_are_all_zero(scores):
    coefficients = zscore(scores)[~np.isnan(scores).all(axis=1)]
    assert not coefficients.any() or abs(np.mean(coefficients**2) - 1) < 1e-9


@given(scores=matrices)
def test_with_one_prompt_both_shapings_agree(scores):
    np.testing.assert_allclose(per_prompt(scores[:, :1]), zscore(scores[:, :1]), atol=1e-9)


@pytest.mark.parametrize("shaping", SHAPINGS.values(), ids=SHAPINGS)
def test_rewards_too_small_for_a_spread_are_a_tie(shaping):
    scores = np.array([[1e-300], [-1e-300], [3e-300]])
    assert shaping(scores).tolist() == [0.0, 0.0, 0.0]
