"""Which of a member's samples make its score."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.config import Config
from seedtune.objectives import OBJECTIVES, majority_at_k, mean, pass_at_k

NAN = math.nan
samples = st.lists(
    st.tuples(st.sampled_from(["a", "b", " b\n", ""]), st.sampled_from([0.0, 0.5, 1.0, NAN])), min_size=1, max_size=7
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
    assert pass_at_k(["x"] * len(rewards), rewards) == chosen


@pytest.mark.parametrize(
    ("texts", "chosen"),
    [
        (["4", "5", "4"], [0, 2]),
        (["5", "4", " 4\n"], [1, 2]),
        (["4", "5"], [0]),
        (["5", "4", "4", "5"], [0, 3]),
        (["", " ", "5"], [0, 1]),
        (["A", "a", "a"], [1, 2]),
    ],
    ids=str,
)
def test_the_majority_is_the_most_frequent_stripped_text_and_of_several_the_first(texts, chosen):
    assert majority_at_k(texts, [0.0] * len(texts)) == chosen


@given(samples)
def test_objectives_agree_with_a_plain_count(drawn):
    texts, rewards = [text for text, _ in drawn], [reward for _, reward in drawn]
    assert mean(texts, rewards) == list(range(len(drawn)))
    known = [reward for reward in rewards if not math.isnan(reward)]
    assert [rewards[i] for i in pass_at_k(texts, rewards)] == ([max(known)] if known else [])
    stripped = [text.strip() for text in texts]
    winner = max(stripped, key=lambda text: (stripped.count(text), -stripped.index(text)))
    assert {stripped[i] for i in majority_at_k(texts, rewards)} == {winner}
    assert len(majority_at_k(texts, rewards)) == stripped.count(winner)


def test_every_objective_of_the_configuration_exists():
    several = Config(samples_per_prompt=2, temperature=1.0)
    assert {several.replace(objective=name).objective for name in OBJECTIVES} == set(OBJECTIVES)
