"""Adapters: functions of verl, reasoning-gym and (output, target) pairs as rewards with TRL's signature."""

from __future__ import annotations

import sys

import pytest

from reward_calls import score
from seedtune.errors import ConfigError, MissingExtraError, RewardError
from seedtune.rewards.base import Reward
from seedtune.rewards.sources import adapters
from seedtune.rewards.sources.adapters import pair, reasoning_gym, verl
from seedtune.types import Example

CHAT = ({"role": "user", "content": "2 + 2?"},)


def values(function, rows, texts, prompt="p") -> list[float]:
    made = [Example(index, prompt, row) for index, row in enumerate(rows)]
    return score([Reward("r", function)], made, texts)["r"]


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return float(solution_str == ground_truth) + (extra_info or {}).get("bonus", 0.0) + (data_source == "gsm8k") * 0.5


def test_verl_gets_its_four_arguments_from_the_columns():
    rows = [
        {"data_source": "gsm8k", "ground_truth": "4", "extra_info": {"bonus": 2.0}},
        {"data_source": "math", "ground_truth": "5", "extra_info": None},
    ]
    assert values(verl(compute_score, None), rows, ["4", "4"]) == [3.5, 0.0]


def test_verl_finds_the_ground_truth_where_its_own_data_have_it_or_where_it_is_told():
    nested = [{"data_source": "x", "reward_model": {"style": "rule", "ground_truth": "4"}}]
    assert values(verl(compute_score, None), nested, ["4"], CHAT) == [1.0]
    assert values(verl(compute_score, "solution"), [{"solution": "4"}], ["4"]) == [1.0]


def test_verl_functions_with_fewer_arguments_and_with_details_work():
    assert values(
        verl(lambda solution_str, ground_truth: {"score": 0.25, "acc": 1}, None), [{"ground_truth": "x"}], [""]
    ) == [0.25]
    with pytest.raises(RewardError, match=r"a mapping without a 'score' \(it holds \['acc'\]\)"):
        values(verl(lambda solution_str: {"acc": 1}, None), [{"ground_truth": "x"}], [""])


def test_a_missing_ground_truth_says_which_columns_there_are():
    with pytest.raises(
        RewardError, match=r"needs a column 'ground_truth'.* the data have \['answer'\].*target: COLUMN"
    ):
        values(verl(compute_score, None), [{"answer": "4"}], ["4"])


def test_async_functions_are_awaited_together():
    async def judged(output, target):
        return 1.0 if output == target else None

    found = values(pair(judged, None), [{"target": "a"}, {"target": "b"}], ["a", "a"])
    assert found[0] == 1.0
    assert found[1] != found[1]


def test_pairs_take_the_one_target_column_there_is():
    assert values(pair(lambda output, target: output == target, None), [{"answer": "4"}], ["4"], CHAT) == [1.0]
    assert values(pair(lambda o, t: len(o) - t, "size"), [{"size": 1, "answer": 2}], ["abc"]) == [2.0]


@pytest.mark.parametrize(
    ("row", "target", "message"),
    [
        ({"answer": 1, "target": 2}, None, r"takes the target from one of .* the data have \['answer', 'target'\]"),
        ({"other": 1}, None, r"the data have \['other'\]"),
        ({"solution": 1}, "soluton", "target='soluton' is not a column of the data. Did you mean 'solution'?"),
    ],
)
def test_a_target_that_is_unclear_is_not_guessed(row, target, message):
    with pytest.raises(RewardError, match=message):
        values(pair(lambda o, t: 1.0, target), [row], ["x"])


def test_reasoning_gym_gets_the_answer_between_tags_and_the_row_as_its_entry():
    seen = []

    def score_answer(answer, entry):
        seen.append((answer, entry))
        return 1.0 if answer == entry["answer"] else 0.01

    rows = [{"answer": "7", "metadata": {"n": 1}}, {"answer": "7", "question": "own"}]
    texts = ["I think <answer>6</answer>, no: <answer> 7 </answer>.", " 8\n"]
    assert values(reasoning_gym(score_answer, None), rows, texts, CHAT) == [1.0, 0.01]
    assert [answer for answer, _ in seen] == ["7", "8"]
    assert [entry["question"] for _, entry in seen] == ["2 + 2?", "own"]


def test_reasoning_gym_scores_its_own_rows_without_a_function():
    gym = pytest.importorskip("reasoning_gym")
    entry = gym.create_dataset("chain_sum", size=1, seed=1)[0]
    rows = [{key: entry[key] for key in ("answer", "metadata")}] * 2
    assert values(reasoning_gym(None, None), rows, [entry["answer"], "nothing"], entry["question"]) == [1.0, 0.0]


@pytest.mark.parametrize("row", [{"answer": "1"}, {"metadata": {}}, {"metadata": "x"}], ids=str)
def test_rows_that_no_generator_made_need_a_function(row):
    with pytest.raises(RewardError, match=r"needs rows with metadata=\{'source_dataset': NAME"):
        values(reasoning_gym(None, None), [row], ["1"])


def test_an_unknown_generator_and_a_missing_package_are_named(monkeypatch):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match="'no_such_generator' is not a generator"):
        adapters._scorer("no_such_generator")
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'seedtune\[tasks\]'"):
        adapters._scorer("countdown_of_nobody")


def test_adapted_functions_keep_their_names():
    assert verl(compute_score, None).__name__ == "compute_score"


@pytest.mark.parametrize("name", ["countdown"])
def test_scorers_that_run_what_the_model_wrote_are_refused_without_a_path_too(name, tmp_path):
    row = {"metadata": {"source_dataset": name, "target": 1, "numbers": [1]}, "question": "?", "answer": "1"}
    trap = tmp_path / "trap"
    answer = f"<answer>__import__('pathlib').Path({str(trap)!r}).touch()</answer>"
    with pytest.raises(RewardError, match=f"'{name}' is refused: its scorer runs"):
        values(reasoning_gym(None, None), [row], [answer])
    assert not trap.exists()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 4 </answer> or <answer>5</answer>", "5"),
        ("<answer>5</answer>\n<answer>5", "5"),
        ("</answer> <answer>5", "</answer> <answer>5"),
        (" just 5 ", "just 5"),
    ],
)
def test_the_answer_for_reasoning_gym_is_the_last_that_is_closed(text, answer):
    assert adapters.answer_in(text) == answer
