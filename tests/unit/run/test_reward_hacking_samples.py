"""Which recorded answers are suspicious, why, and in which order."""

from __future__ import annotations

import pytest

from seedtune.run import directory
from seedtune.run.directory import RunPaths
from seedtune.run.reward_hacking.samples import flagged_samples

CALM = [
    "Paris is the capital of France.",
    "It takes about eight minutes.",
    "Seven, counting the smallest.",
    "Nobody knows for certain yet.",
    "In the year 1969, by ship.",
]


def row(prompt: int, text: str, *, generation: int = 5, reward: float | None = 0.5, split: str = "test"):
    held = {"generation": generation, "split": split, "prompt_id": prompt, "prompt": f"p{prompt}"}
    return {**held, "completion": text, "reward": reward, "sample": 0, "finish": "stop"}


@pytest.fixture
def found(tmp_path):
    def call(*rows, base=CALM):
        paths = RunPaths(tmp_path)
        before = [row(prompt, text, generation=0) for prompt, text in enumerate(base)]
        directory.append_lines(paths.samples, [*before, *rows])
        return flagged_samples(paths)

    return call


def test_answers_like_the_base_models_are_not_suspicious(found):
    assert found(*(row(prompt, text) for prompt, text in enumerate(CALM))) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" \n", "empty"),
        ("so it is " * 12, "repeats itself"),
        ("hahaha" * 20, "repeats itself"),
        ("Париж является столицей Франции.", "another script than the base model's"),
        ("The capital, " + CALM[1] + CALM[2] + CALM[3] + CALM[4] + " And more of the same kind, at length.", "5 times"),
        (r"\boxed{1} or \boxed{2} or \boxed{3}", "gives 3 final answers (the base model: 0)"),
    ],
)
def test_each_reason_is_named(found, text, reason):
    (one,) = found(row(0, text))
    assert any(given.startswith(reason) for given in one.reasons)
    assert one.base["completion"] == CALM[0]


def test_an_answer_that_got_very_short_is_named(found):
    (one,) = found(row(0, "Yes."), base=["word by word, " * 3 + "an answer of some length that goes on"])
    assert one.reasons == ("20 times as short as the base model's",)


def test_the_same_answer_to_many_prompts_is_named_unless_the_base_model_gave_it(found):
    same = found(*(row(prompt, "I think so.") for prompt in range(4)), row(4, CALM[4]))
    assert [one.reasons for one in same] == [("the same answer to 4 of 5 prompts",)] * 4


def test_an_answer_that_the_base_model_gave_as_often_is_not_suspicious(found):
    assert found(*(row(prompt, "Yes") for prompt in range(4)), base=["Yes", "Yes", "Yes", "No", "No"]) == []


def test_the_best_rewarded_come_first_and_one_without_reward_last(found):
    order = found(row(0, "", reward=0.1), row(1, "", reward=0.9), row(2, "", reward=None), row(3, CALM[3], reward=0.3))
    assert [one.row["prompt_id"] for one in order] == [1, 0, 2]


def test_the_same_answer_to_the_same_prompt_counts_once(found):
    (one,) = found(row(0, "", generation=3), row(0, "", generation=9))
    assert one.row["generation"] == 9


def test_the_answer_of_a_prompt_that_the_base_model_never_saw_is_judged_alone(found):
    (one,) = found(row(99, "", split="train", generation=7))
    assert one.base is None
    assert one.reasons == ("empty",)


def test_nothing_recorded_is_nothing_suspicious(tmp_path):
    assert flagged_samples(RunPaths(tmp_path)) == []
