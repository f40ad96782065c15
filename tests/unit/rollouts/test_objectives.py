"""Which of a member's samples make its score."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.config.config import Config
from seedtune.rollouts.objectives import (
    LIKELIHOODS,
    OBJECTIVES,
    choice_accuracy,
    logprob,
    select_all,
    select_best,
    select_majority,
)

NAN = math.nan
samples = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", ""]), st.sampled_from([0.0, 0.5, 1.0, NAN])), min_size=1, max_size=7
)


@pytest.mark.parametrize(
    ("rewards", "chosen"),
    [
        ([0.0, 1.0, 0.5], [1]),
        ([1.0, 1.0], [0]),
        ([NAN, -3.0, NAN, -2.0], [3]),
        ([NAN, NAN], []),
        ([7.0], [0]),
    ],
    ids=str,
)
def test_pass_at_k_is_the_best_sample_that_has_a_reward(rewards, chosen):
    assert select_best(["x"] * len(rewards), rewards) == chosen


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (["4", "5", "4"], [0, 2]),
        (["5", "4", "4"], [1, 2]),
        (["4", "5"], [0]),
        (["5", "4", "4", "5"], [0, 3]),
        (["", "", "5"], [2]),
        (["", ""], [0, 1]),
        (["A", "a", "a"], [1, 2]),
    ],
    ids=str,
)
def test_the_majority_is_the_most_frequent_answer_and_of_several_the_first(answers, chosen):
    assert select_majority(answers, [0.0] * len(answers)) == chosen


@given(samples)
def test_objectives_agree_with_a_plain_count(drawn):
    texts, rewards = [text for text, _ in drawn], [reward for _, reward in drawn]
    assert select_all(texts, rewards) == list(range(len(drawn)))
    known = [reward for reward in rewards if not math.isnan(reward)]
    assert [rewards[i] for i in select_best(texts, rewards)] == ([max(known)] if known else [])
    votes = [text for text in texts if text] or texts
    winner = max(votes, key=lambda text: (votes.count(text), -votes.index(text)))
    chosen = select_majority(texts, rewards)
    assert [texts[i] for i in chosen] == ([winner] * votes.count(winner) if any(texts) else texts)


def test_every_objective_of_the_configuration_exists():
    several, given = Config(samples_per_prompt=2, temperature=1.0), Config()
    for name in OBJECTIVES:
        config = (given if name in LIKELIHOODS else several).replace(objective=name)
        assert (config.objective, config.uses_likelihood) == (name, name in LIKELIHOODS)


def test_the_log_probability_of_an_answer_is_the_mean_over_its_tokens():
    assert logprob([[-1.0, -2.0]], 0) == (0, -1.5)
    assert math.isnan(logprob([[-1.0, -math.inf]], 0)[1])


def test_the_choice_with_the_highest_mean_counts_and_the_first_of_equal_ones():
    assert choice_accuracy([[-1.0, -1.0, -1.0], [-2.0]], 0) == (0, 1.0)
    assert choice_accuracy([[-1.0, -1.0, -1.0], [-0.5]], 0) == (1, 0.0)
    assert choice_accuracy([[-1.0], [-1.0]], 1) == (0, 0.0)


def test_a_choice_that_is_no_number_makes_the_accuracy_none():
    assert math.isnan(choice_accuracy([[-1.0], [math.nan]], 0)[1])
