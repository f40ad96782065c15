"""What every built-in task promises: data, ids, and a reward that likes the right answer best."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from seedtune import tasks
from seedtune.config import Config
from seedtune.errors import ConfigError, DataError
from seedtune.rewards.scoring import score, total
from seedtune.tasks.base import Task
from seedtune.tasks.data import examples
from seedtune.types import Example

GOLD = {
    "conciseness": lambda example: example.columns["answer"],
    "toy": lambda example: str(example.columns["answer"]),
}
"""The best completion of an example; a new task needs a row here."""

OTHERS = ("", "x", "I do not know, but let me think about it step by step for a while.", "1e9", "🙂\n\n")


@pytest.fixture(params=tasks.TASKS)
def name(request) -> str:
    return request.param


@pytest.fixture
def task(name) -> Task:
    return tasks.create(name)


def rewards_of(task: Task, data, texts) -> list[float]:
    return total(task.rewards, score(task.rewards, data, texts))


def test_there_is_a_gold_answer_for_every_task():
    assert set(GOLD) == set(tasks.TASKS)


def test_it_has_data_and_rewards_under_its_name(name, task):
    assert task.name == name
    assert task.train
    assert task.test
    assert task.rewards


def test_ids_are_positions_in_each_split(task):
    for split in (task.train, task.test):
        assert [example.id for example in split] == list(range(len(split)))


def test_making_it_twice_gives_the_same_data(name, task):
    again = tasks.create(name)
    assert (again.train, again.test) == (task.train, task.test)


def test_prompts_are_text_or_messages_that_are_not_empty(task):
    for example in (*task.train, *task.test):
        parts = [example.prompt] if isinstance(example.prompt, str) else [m["content"] for m in example.prompt]
        assert parts
        assert all(part.strip() for part in parts)


def test_gold_answers_get_the_best_reward(name, task):
    for split in (task.train, task.test):
        gold = rewards_of(task, split, [GOLD[name](example) for example in split])
        assert np.isfinite(gold).all()
        for other in OTHERS:
            reached = rewards_of(task, split, [other] * len(split))
            assert all(math.isnan(value) or value <= best for value, best in zip(reached, gold, strict=True))


def test_an_unknown_task_is_an_error_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"task='concisness' is not a built-in task\. Did you mean 'conciseness'"):
        tasks.create("concisness")


def test_the_default_task_exists():
    assert Config().task in tasks.TASKS


def test_rows_become_numbered_examples_with_their_other_columns():
    rows = [{"prompt": "a", "x": 1}, {"prompt": [{"role": "user", "content": "b"}]}]
    made = examples(iter(rows), "train")
    assert made == (Example(0, "a", {"x": 1}), Example(1, ({"role": "user", "content": "b"},), {}))
    assert examples(None, "train") == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, r"row 1 of the eval data has no 'prompt' \(it holds \['question'\]\)"),
        ("text", r"row 1 of the eval data has no 'prompt' \(it holds str\)"),
        ({"prompt": 5}, "row 1 of the eval data: the prompt 5 is neither text nor a list of messages"),
        ({"prompt": []}, "is neither text nor a list of messages"),
        ({"prompt": [{"content": "x"}]}, "is neither text nor a list of messages"),
    ],
    ids=str,
)
def test_a_row_that_is_no_example_is_named(row, message):
    with pytest.raises(DataError, match=message):
        examples([{"prompt": "fine"}, row], "eval")


def test_packaged_data_ships_with_the_package():
    assert list((Path(tasks.__file__).parent / "data").glob("*.jsonl"))
