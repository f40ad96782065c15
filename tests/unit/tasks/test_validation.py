"""Validation finds what is wrong with a task; and a task of the user's own file is a task like any other."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest

import runs
from seedtune import tasks
from seedtune.config.config import Config
from seedtune.errors import ConfigError, DataError, RewardError
from seedtune.rewards.base import Reward
from seedtune.run import recorded_config
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.tasks.environments import environment_reward
from seedtune.tasks.validation import validate
from seedtune.trainer import ESTrainer

TEMPLATE = Path(__file__).parents[3] / "examples" / "my_task.py"


def exact(completions, answer, **_):
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def made(reward=exact, **more) -> Task:
    rows = [{"prompt": f"say {n}", "answer": f"it is {n}"} for n in range(40)]
    options = {"gold": lambda example: example.columns["answer"], "full_marks": 1.0, **more}
    return Task("mine", examples(rows[10:], "train"), examples(rows[:10], "test"), (Reward("own", reward),), **options)


HERE = Config(reward_workers=0)
"""Workers take longer to start than all else here."""


def broken(task: Task, **options) -> dict[str, str]:
    return {check.what: check.broken for check in validate(task, config=HERE, **options) if check.broken}


def notes(task: Task, config: Config = HERE) -> dict[str, str]:
    return {check.what: check.note for check in validate(task, config=config) if check.note}


def test_a_sound_task_is_valid():
    checks = validate(made(), config=HERE)
    assert not any(check.broken for check in checks)
    assert (len(checks[0].values), checks[0].full, checks[0].mean) == (40, 40, 1.0)


def test_wrong_gold_answers_are_shown_with_what_they_got():
    assert broken(made(gold=lambda example: "it")) == {"gold": "40 of 40 gold answers got less, first 'it': 0"}


def test_a_reward_that_anything_satisfies_is_broken():
    found = broken(made(lambda completions, **_: [1.0] * len(completions)))
    assert found["empty"] == "40 of 40 got more, up to 1"
    assert found["I do not know."] == "40 of 40 got full marks"


def test_a_reward_that_grows_without_end_is_broken():
    found = broken(made(lambda completions, **_: [len(text) / 7 for text in completions]))
    assert found["100,000 brackets"] == "40 of 40 got more than gold"


def test_a_reward_that_changes_its_mind_is_broken():
    marks = itertools.count()
    steps = made(lambda completions, **_: [float(next(marks)) for _ in completions], full_marks=None)
    assert broken(steps)["gold"] == "scored twice, the same answers got different marks"


def test_a_reward_without_a_value_for_gold_is_broken():
    found = broken(made(lambda completions, **_: [None] * len(completions), full_marks=None))
    assert found == {"gold": "40 of 40 gold answers got less, first 'it is 0': nan"}


def test_a_reward_that_raises_is_an_error():
    with pytest.raises(RewardError, match="the reward function 'own' raised"):
        validate(made(lambda completions, **_: 1 / 0))


def test_a_reward_that_raises_on_some_answers_is_noted_in_their_rows_and_the_rest_is_checked():
    def picky(completions, answer):
        return [
            float(int(text.split()[2]) == int(right.split()[2]))
            for text, right in zip(completions, answer, strict=True)
        ]

    checks = {check.what: check for check in validate(made(picky), config=HERE)}
    assert checks["gold"].note == ""
    assert checks["empty"].note == (
        "the reward function 'own' failed on 40: it raised IndexError: list index out of range"
    )
    assert (checks["empty"].unscored, checks["empty"].broken) == (40, "")
    assert checks["gold 20 times"].note == ""
    assert checks["gold 20 times"].full == 40


def slow_on_junk(completions, answer):
    if completions[0] == "":
        time.sleep(1e9)
    return exact(completions, answer)


def test_a_reward_that_hangs_on_some_answers_costs_only_their_time():
    task = made(slow_on_junk)
    few = Task("mine", task.train[:1], (), task.rewards, task.gold, task.full_marks)
    found = notes(few, Config(reward_workers=1, reward_timeout=2.0))
    assert set(found) == {"empty"}
    assert "'own' failed on 1: it took longer than 2 s" in found["empty"]


def test_log_probability_objectives_have_nothing_to_validate():
    with pytest.raises(
        ConfigError, match="objective='logprob' measures how probable reference answers are: there is no"
    ):
        validate(made(), config=Config(objective="logprob"))


class Room:
    """Ends after one message; resets and plays only as rows say."""

    def reset(self, prompt, answer):
        if answer == "it is 3":
            raise OSError("no room")
        self.right = f"{prompt}: {answer}"

    def step(self, text):
        self.done = float(f"say {text.split()[-1:]}" == f"say {self.right.split()[-1:]}")

    def reward(self):
        return self.done


def test_environments_get_the_keywords_they_take_and_one_that_fails_has_no_value():
    task = made(environment=Room, full_marks=1.0)
    task = replace(task, rewards=(Reward("own", environment_reward),))
    rows = [replace(e, columns={**e.columns, "other": 1}) for e in (*task.test, *task.train)]
    checks = {check.what: check for check in validate(replace(task, train=rows, test=()), config=HERE)}
    assert (checks["gold"].full, checks["gold"].unscored) == (39, 1)
    assert checks["gold"].note == "the environment failed on 1: it raised OSError: no room"
    assert checks["empty"].most == 0


def test_without_gold_answers_a_column_is_taken_or_asked_for():
    assert broken(made(gold=None)) == {}
    assert broken(made(gold=None), gold="answer") == {}
    rows = examples([{"prompt": "a", "right": "b"}], "train")
    task = Task("mine", rows, (), (Reward("own", exact),))
    with pytest.raises(DataError, match=r"has no gold answers: its columns are \['right'\]\. Add a column 'gold'"):
        validate(task)
    with pytest.raises(DataError, match="has no examples"):
        validate(Task("mine", (), (), ()))


# ------------------------------------------------------------------- a file of one's own


def test_the_template_is_thirty_lines_at_most_and_valid():
    assert len(TEMPLATE.read_text().splitlines()) <= 30
    task = tasks.create(f"{TEMPLATE}:my_task")
    checks = validate(task)
    assert checks[0].full == len(checks[0].values) == 200
    assert not any(check.broken for check in checks)
    assert len(tasks.create(f"{TEMPLATE}:my_task", {"size": 8}).train) == 6


def test_a_run_on_a_task_of_a_file_resumes_from_its_configuration(tmp_path):
    config = runs.toy(tmp_path / "run", task_args={"size": 20}, generations=2).replace(task=f"{TEMPLATE}:my_task")
    ESTrainer(args=config).train()
    recorded = recorded_config.run_config(tmp_path / "run")
    assert (recorded.task, recorded.task_args) == (f"{TEMPLATE}:my_task", {"size": 20})
    trainer = ESTrainer(args=recorded.replace(generations=3))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.generation == 3


def test_settings_of_a_task_are_part_of_what_a_run_is():
    assert Config(task_args={"size": 2}).identity()["task_args"] == {"size": 2}


@pytest.mark.parametrize(
    ("text", "function", "args", "message"),
    [
        ("def f(size=1): return 1", "f", {"sise": 2}, r"unknown setting 'task_args\.sise'\. Did you mean 'size'\?"),
        ("def f(size): return 1", "f", {}, r"f needs task_args\.size\. Give it, for example --set task_args\.size=1"),
        ("def f(): return 1", "f", {}, r"returned int, not a seedtune\.tasks\.Task"),
        (
            "from seedtune.tasks import Task\ndef f(): return Task('t', [{'prompt': 'Hi'}], [], ())",
            "f",
            {},
            r"has rows of type dict, not seedtune\.types\.Example",
        ),
        ("def f(): return 1 / 0", "f", {}, r"raised ZeroDivisionError: division by zero\. Fix the function"),
        ("def fun(): return 1", "fin", {}, r"task=.*: there is no 'fin' in it\. Did you mean 'fun'\?"),
        ("import nothing_like_it", "f", {}, r"importing .*own.py' raised ModuleNotFoundError: .*nothing_like_it"),
        ("def f(: pass", "f", {}, r"importing .*own.py' raised SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, text, function, args, message):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises((ConfigError, DataError), match=message):
        tasks.create(f"{tmp_path / 'own.py'}:{function}", args)


def test_rows_of_a_file_are_plain_data_too(tmp_path):
    (tmp_path / "own.py").write_text(
        "import numpy as np\nfrom datetime import date\nfrom seedtune.tasks import Task\n"
        "from seedtune.types import Example\n"
        "chat = ({'role': 'user', 'content': 'Hi', 'on': date(2024, 5, 1)},)\n"
        "def f(): return Task('t', [Example(0, chat, {'n': np.int64(3)})], [], ())\n"
    )
    (example,) = tasks.create(f"{tmp_path / 'own.py'}:f").train
    assert example.prompt == ({"role": "user", "content": "Hi", "on": "2024-05-01"},)
    assert type(example.columns["n"]) is int


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"task='gone.py:task': there is no file 'gone\.py'\. Check the path"):
        tasks.create("gone.py:task")
