"""Claims about what is said to have changed between a run's first and last held-out evaluation."""

from __future__ import annotations

import json

import pytest

from seedtune.evaluation.comparison import Change, compare, last_alarms, marked
from seedtune.evaluation.estimators import Estimate
from seedtune.run.directory import RunPaths


def row(generation: int, prompt: int, text: str, **more) -> dict:
    made = {"generation": generation, "split": "test", "prompt_id": prompt, "prompt": f"p{prompt}", "sample": 0}
    return {**made, "completion": text, "reward": float(len(text)), "right": None, "finish": "stop", **more}


def written(tmp_path, rows, metrics=()) -> RunPaths:
    paths = RunPaths(tmp_path)
    for path, lines in ((paths.samples, rows), (paths.metrics, metrics)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def changes(paths: RunPaths) -> dict:
    found = compare(paths)
    assert found is not None
    return {change.measure: change for change in found.changes}


def test_means_before_and_after_and_their_paired_difference(tmp_path):
    rows = [row(0, 0, "aaaa", right=True, finish="length"), row(0, 1, "bb", right=False)]
    rows += [row(5, 0, "a", right=True), row(5, 1, "", right=True), row(3, 0, "ignored", right=False)]
    found = changes(written(tmp_path, rows))
    assert list(found) == ["right answers", "reward", "characters", "empty answers", "cut off at the limit"]
    values = {name: (c.before.value, c.after.value, c.difference.value) for name, c in found.items()}
    assert values["right answers"] == (0.5, 1.0, 0.5)
    assert values["characters"] == (3.0, 0.5, -2.5)
    assert values["empty answers"] == (0.0, 0.5, 0.5)
    assert values["cut off at the limit"] == (0.5, 0.0, -0.5)
    assert compare(RunPaths(tmp_path)).generations == (0, 5)


def test_a_difference_that_is_the_same_for_every_prompt_is_sure_however_much_prompts_differ(tmp_path):
    rows = [row(0, number, "x" * (10 * number + 5)) for number in range(20)]
    rows += [row(1, number, "x" * (10 * number + 2)) for number in range(20)]
    found = changes(written(tmp_path, rows))["characters"]
    assert (found.difference.low, found.difference.value, found.difference.high) == (-3.0, -3.0, -3.0)
    assert found.before.high - found.before.low > 30


def test_only_prompts_that_both_evaluations_have_are_compared(tmp_path):
    rows = [row(0, 0, "aa"), row(0, 1, "bb"), row(2, 1, "b"), row(2, 7, "c")]
    found = compare(written(tmp_path, rows))
    assert found.prompts == 1
    assert found.changes[1].cells == ("2", "1", "-1")


def test_several_samples_of_a_prompt_count_as_their_mean(tmp_path):
    rows = [row(0, 0, "aaaa"), row(0, 0, ""), row(1, 0, "a"), row(1, 0, "a"), row(0, 1, "b"), row(1, 1, "b")]
    found = changes(written(tmp_path, rows))
    assert found["characters"].before.value == 1.5
    assert found["empty answers"].before.value == 0.25


def test_rewards_that_are_missing_are_left_out(tmp_path):
    rows = [row(0, 0, "a", reward=None), row(0, 1, "bb"), row(1, 0, "a"), row(1, 1, "b")]
    found = changes(written(tmp_path, rows))["reward"]
    assert (found.before.value, found.after.value, found.difference.value) == (2.0, 1.0, -1.0)


@pytest.mark.parametrize("rows", [[], [row(0, 0, "a")], [row(0, 0, "a"), row(3, 1, "b")]])
def test_without_two_evaluations_of_a_prompt_there_is_nothing_to_compare(tmp_path, rows):
    assert compare(written(tmp_path, rows)) is None


def test_training_answers_are_not_compared(tmp_path):
    rows = [row(0, 0, "a"), row(2, 0, "b"), row(3, 0, "ccc", split="train")]
    assert compare(written(tmp_path, rows)).generations == (0, 2)


def test_the_alarms_are_those_of_the_last_generation(tmp_path):
    metrics = [{"generation": 1, "reward": 1.0, "alarms": ["old"]}, {"generation": 2, "reward": 1.0, "alarms": ["new"]}]
    assert last_alarms(written(tmp_path, [], [*metrics, {"generation": 2, "eval_reward": 1.0}])) == ["new"]
    assert last_alarms(written(tmp_path, [])) == []


def test_shares_are_shown_in_per_cent_and_differences_with_their_sign():
    shares = Change("right answers", Estimate(0.5, 0.25, 0.75), Estimate(-0.0), Estimate(0.5, -0.25, 0.75))
    assert shares.cells == ("50.0 % [25.0 %, 75.0 %]", "0.0 %", "+50.0 % [-25.0 %, +75.0 %]")
    plain = Change("reward", Estimate(12.345678), Estimate(None), Estimate(-0.0))
    assert plain.cells == ("12.35", "–", "-0")


@pytest.mark.parametrize(
    ("before", "after", "lost", "new"),
    [
        ("The sky is blue, I think.", "The sky is green.", "blue, I think.", "green."),
        ("same words", "same words", "", ""),
        ("", "all new", "", "all new"),
        ("all gone ", "", "all gone", ""),
        ("a  b", "a\nb", "", ""),
    ],
)
def test_words_that_the_other_answer_lacks_are_marked_and_nothing_is_lost(before, after, lost, new):
    for text, spans, differing in zip((before, after), marked(before, after), (lost, new), strict=True):
        assert "".join(piece for piece, _ in spans) == text
        assert "".join(piece for piece, differs in spans if differs).strip() == differing
