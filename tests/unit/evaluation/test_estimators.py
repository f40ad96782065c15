"""pass@k, maj@k and intervals: against cases counted by hand, and against every subset."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedtune.evaluation.estimators import Estimate, bootstrap, majority_at_k, pass_at_k

# -------------------------------------------------------------------------- pass@k


@pytest.mark.parametrize(
    ("samples", "right", "k", "expected"),
    [
        (1, 0, 1, Fraction(0)),
        (1, 1, 1, Fraction(1)),
        (4, 1, 1, Fraction(1, 4)),
        (4, 1, 2, Fraction(1, 2)),
        (4, 2, 2, Fraction(5, 6)),
        (4, 3, 2, Fraction(1)),
        (10, 3, 5, Fraction(11, 12)),
        (16, 1, 16, Fraction(1)),
        (16, 0, 16, Fraction(0)),
        (5, 2, 4, Fraction(1)),
    ],
)
def test_pass_at_k_is_what_one_counts_by_hand(samples, right, k, expected):
    assert pass_at_k(samples, right, k) == pytest.approx(float(expected), abs=1e-15)


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_formula_of_the_paper(case):
    samples, right, k = case
    exact = 1 - Fraction(math.comb(samples - right, k), math.comb(samples, k))
    assert pass_at_k(samples, right, k) == pytest.approx(float(exact), abs=1e-12)


def test_pass_at_k_holds_where_binomials_overflow():
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1)])
def test_impossible_counts_are_refused(samples, right, k):
    with pytest.raises(ValueError, match=r"give a (k|number) from"):
        pass_at_k(samples, right, k)


# --------------------------------------------------------------------------- maj@k


def by_every_subset(answers, values, k) -> float:
    worth = {a: np.mean([v for b, v in zip(answers, values, strict=True) if b == a]) for a in set(answers)}
    results = []
    for chosen in combinations(range(len(answers)), k):
        votes = Counter(answers[i] for i in chosen if answers[i])
        winners = [a for a, count in votes.items() if count == max(votes.values())]
        results.append(sum(worth[a] for a in winners) / len(winners) if winners else 0.0)
    return float(np.mean(results))


@pytest.mark.parametrize(
    ("answers", "right", "k", "expected"),
    [
        ("AAB", "A", 3, 1.0),
        ("AAB", "B", 3, 0.0),
        ("AAB", "A", 1, 2 / 3),
        ("AAB", "A", 2, 2 / 3),  # AA, and AB twice, of which half is A
        ("AABB", "A", 4, 0.5),
        ("ABC", "A", 3, 1 / 3),
        ("AAAB", "B", 3, 0.0),
        (("A", "", ""), "A", 3, 1.0),  # an empty answer is no vote
        (("A", "", ""), "A", 2, 2 / 3),  # and two of them decide nothing
        (("", ""), "A", 2, 0.0),
    ],
)
def test_maj_at_k_is_what_one_counts_by_hand(answers, right, k, expected):
    values = [float(answer == right) for answer in answers]
    assert majority_at_k(answers, values, k) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c", "d"]), st.sampled_from([0.0, 0.1, 1.0])), min_size=1,
             max_size=9),
    st.data(),
)  # fmt: skip
def test_maj_at_k_is_the_mean_over_every_subset(samples, data):
    answers, values = zip(*samples, strict=True)
    k = data.draw(st.integers(1, len(samples)))
    assert majority_at_k(answers, values, k) == pytest.approx(by_every_subset(answers, values, k), abs=1e-12)


def test_one_vote_is_the_mean_reward():
    values = [0.1, 0.7, 0.4, 1.0]
    assert majority_at_k(list("abab"), values, 1) == pytest.approx(np.mean(values))


def test_maj_at_k_of_many_samples_neither_overflows_nor_vanishes():
    answers = ["a"] * 700 + ["b"] * 500
    assert majority_at_k(answers, [1.0] * 700 + [0.0] * 500, 3) == pytest.approx(
        pass_at_k(1200, 700, 3) - 700 * math.comb(500, 2) / math.comb(1200, 3), abs=1e-9
    )


def test_a_sample_without_a_value_leaves_the_value_of_its_answer_to_the_others():
    assert majority_at_k(list("aab"), [1.0, math.nan, 0.0], 3) == 1.0
    assert majority_at_k(list("aab"), [math.nan, math.nan, 1.0], 3) == 0.0


def test_more_votes_than_samples_are_refused():
    with pytest.raises(ValueError, match="k=4 of samples=3"):
        majority_at_k(list("abc"), [1.0, 0.0, 0.0], 4)


# ----------------------------------------------------------------------- intervals


def one(values, **options) -> Estimate:
    return bootstrap(np.array(values, dtype=float)[:, None], **options)[0]


def test_the_same_numbers_give_the_same_interval_and_another_seed_another():
    values = np.arange(40.0) ** 2
    assert one(values) == one(values)
    assert one(values).value == one(values, seed=1).value
    assert one(values).low != one(values, seed=1).low


def test_an_interval_is_as_wide_as_the_standard_error_says():
    values = np.random.default_rng(0).normal(size=400)
    found = one(values)
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.25 * error)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    found = bootstrap(rng.random((60, 300)) < 0.3, resamples=400)
    held = [estimate.low <= 0.3 <= estimate.high for estimate in found]
    assert 0.88 <= np.mean(held) <= 0.99


def test_what_is_missing_is_left_out():
    assert one([1.0, math.nan, 3.0]).value == 2.0
    assert one([math.nan, math.nan]) == one([]) == Estimate(None)
    assert one([5.0]) == Estimate(5.0)
    assert one([2.0, 2.0]) == Estimate(2.0, 2.0, 2.0)


def test_measures_share_their_draws_so_that_equal_columns_have_equal_intervals():
    values = np.random.default_rng(2).normal(size=(30, 1))
    first, second = bootstrap(np.hstack([values, values]))
    assert first == second


def test_many_prompts_are_drawn_in_pieces_with_the_same_result(monkeypatch):
    values = np.random.default_rng(3).normal(size=50)
    whole = one(values)
    monkeypatch.setattr("seedtune.evaluation.estimators._CHUNK", 120)
    pieces = one(values)
    assert (pieces.low, pieces.high) == pytest.approx((whole.low, whole.high), rel=1e-12)
