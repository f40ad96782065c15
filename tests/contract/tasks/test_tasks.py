"""What every built-in task promises: data, gold answers with full marks, and nothing for an empty answer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from reward_calls import score
from seedtune import tasks
from seedtune.errors import ConfigError, DataError
from seedtune.rewards.base import total
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.tasks.validation import validate
from seedtune.types import Example

ITEMS = {"conciseness": 128, "toy": 32}
"""Tasks that have fewer than 200 items are validated on all of them."""
DIGESTS = {
    "conciseness": "f124c827cbbf1957",
    "countdown": "68670d12b260bc73",
    "json_schema": "165a8ec124ddff33",
    "instruction_format": "849f1a1f970afa10",
    "multiple_choice": "e6cfbbc0a11c35c1",
    "number_guessing": "da87228319b46a3b",
    "right_and_brief": "41c6adb28b8b3d5d",
    "toy": "3bdf3b8a17fabc00",
}
"""Tasks of our own are the same data on every machine and in every version."""
FIXED = ("conciseness", "number_guessing", "right_and_brief", "toy")
"""Tasks without settings."""
MADE = ("arc", "mini_sudoku")
"""Tasks whose data are made by a library: equal where its version is."""
READ = ("gsm8k", "math")
"""Tasks whose data are not made here."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, dict[str, str]]:
    """Questions in the format of GSM8K and of MATH, made here: no hub, no copied data."""
    import reasoning_gym

    folder = tmp_path_factory.mktemp("questions")
    made = {row["question"]: row["answer"] for row in reasoning_gym.create_dataset("gsm_symbolic", seed=3, size=300)}
    words = [{"question": asked, "answer": f"Let me see.\n#### {made[asked]}"} for asked in list(made)[:220]]
    formulas = [
        *(f"\\frac{{{n}}}{{{n + 1}}}" for n in range(1, 140)),
        *(f"{n}\\sqrt{{{n % 5 + 2}}}" for n in range(2, 30)),
        *(f"({n}, {n * n}]" for n in range(2, 30)),
        *(f"x^2 + {n}x - {n}" for n in range(2, 30)),
    ]
    problems = [{"problem": f"Simplify: {text}", "answer": text} for text in formulas]
    args = {}
    for name, rows in (("gsm8k", words), ("math", problems)):
        for split, part in (("train", rows[:120]), ("test", rows[120:])):
            lines = "\n".join(json.dumps(row) for row in part)
            (folder / f"{name}-{split}.jsonl").write_text(lines, encoding="utf-8")
        args[name] = {"path": str(folder / f"{name}-train.jsonl"), "test_path": str(folder / f"{name}-test.jsonl")}
    return args


@pytest.fixture(scope="module", params=tasks.TASKS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def task(name, files) -> Task:
    return tasks.create(name, files.get(name))


def test_it_has_data_and_rewards_under_its_name(name, task):
    assert task.name == name
    assert task.train
    assert task.test
    assert task.rewards
    assert len(task.train) + len(task.test) >= ITEMS.get(name, 200)


def test_the_registry_tells_how_many_examples_there_are(name, task):
    if name not in READ:
        assert tasks.TASKS[name].sizes == (len(task.train), len(task.test))


def test_ids_are_positions_in_each_split(task):
    for split in (task.train, task.test):
        assert [example.id for example in split] == list(range(len(split)))


def test_making_it_twice_gives_the_same_data(name, task, files):
    sizes = {} if name in FIXED else {"train_size": 20}
    again = tasks.create(name, {**files.get(name, {}), **sizes})
    assert (again.train[:20], again.test) == (task.train[:20], task.test)
    if name in DIGESTS:
        assert task.digest() == DIGESTS[name]
    else:
        assert again.digest() == replace(task, train=task.train[:20]).digest() != task.digest()


def test_every_task_of_our_own_has_a_digest():
    assert {*DIGESTS, *MADE, *READ} == set(tasks.TASKS)


def prompt_text(example: Example) -> str:
    return example.prompt if isinstance(example.prompt, str) else "\n".join(m["content"] for m in example.prompt)


def test_no_test_prompt_is_a_training_prompt(name, task):
    if name != "toy":  # evaluated on itself: there is nothing to generalise
        train, test = ([prompt_text(example) for example in split] for split in (task.train, task.test))
        assert set(train).isdisjoint(test)
        if task.environment is None:  # a conversation's row is more than its first prompt
            assert len({*train, *test}) == len(train) + len(test)


def test_prompts_are_text_or_messages_that_are_not_empty(task):
    assert all(prompt_text(example).strip() for example in (*task.train, *task.test))


def test_columns_are_plain_data_that_another_process_gets_whole(task):
    for example in (*task.train[:50], *task.test[:50]):
        assert json.loads(json.dumps(dict(example.columns))) == dict(example.columns)


def test_gold_answers_get_full_marks_empty_ones_none_and_wrong_ones_less(name, task):
    checks = validate(task, items=200)
    assert [(check.what, check.broken) for check in checks if check.broken] == []
    assert checks[0].what == "gold"
    assert checks[0].full == len(checks[0].values) >= ITEMS.get(name, 200)
    assert checks[1].what == "empty"
    assert checks[1].full == 0


def test_rewards_take_completions_as_text_and_as_messages(task):
    if task.environment is not None:
        pytest.skip("rewards of conversations read the environment")
    held = task.test[:50]
    texts = [task.gold(example) for example in held]
    prompts = ("text", ({"role": "user", "content": "text"},))
    found = [score(task.rewards, [Example(e.id, prompt, e.columns) for e in held], texts) for prompt in prompts]
    assert found[0] == found[1]


# ------------------------------------------------------------------------------ votes

WITHOUT = ("conciseness", "json_schema", "instruction_format", "number_guessing", "right_and_brief", "toy")
"""Tasks whose answer is the whole text."""


def test_what_is_said_around_an_answer_does_not_change_the_vote(name, task):
    if name in WITHOUT:
        assert task.answer is None
        return
    for example in task.test[:50]:
        gold = task.gold(example)
        assert task.answer(gold)
        assert task.answer(f"I tried this and that.\n{gold}") == task.answer(gold)
    for nothing in ("", "I am\nnot sure."):
        assert task.answer(nothing) == ""


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("gsm8k", ("so \\boxed{1,234}", "#### 1234", "<answer>$1234.0$</answer>")),
        ("math", ("\\boxed{\\dfrac{1}{2}}", "\\boxed{0.5}", "#### 1/2")),
        ("mini_sudoku", ("<answer>\n1 2\n2 1</answer>", "<answer>[1, 2]\n[2, 1]</answer>")),
        ("multiple_choice", ("The answer is B.", "<answer>b</answer>", "B) Paris", "I say A. The answer is (B)")),
    ],
)
def test_equal_answers_are_one_vote(name, texts, files):
    task = tasks.create(name, {**files.get(name, {}), "train_size": 8, **({} if name in READ else {"test_size": 4})})
    assert len({task.answer(text) for text in texts}) == 1


def test_a_right_equation_is_right_whatever_its_format():
    task = tasks.create("countdown", {"train_size": 1, "test_size": 1})
    example = task.test[0]
    texts = (f"Well. {task.gold(example)}", f"<answer>{example.columns['solution']}</answer>")
    for text in texts:
        (reward,) = total(task.rewards, score(task.rewards, [example], [text]))
        assert task.right_from <= reward < task.full_marks
    (neat,) = total(task.rewards, score(task.rewards, [example], ["<think>a</think><answer>1</answer>"]))
    assert neat < task.right_from


# ------------------------------------------------------------------------- settings


def test_settings_change_the_task():
    task = tasks.create("countdown", {"numbers": 3, "train_size": 20, "test_size": 5, "seed": 1})
    assert (len(task.train), len(task.test)) == (20, 5)
    assert {len(example.columns["numbers"]) for example in task.train} == {3}
    assert task.digest() != tasks.create("countdown", {"numbers": 3, "train_size": 20, "seed": 2}).digest()


def test_the_test_split_does_not_depend_on_the_size_of_the_training_split():
    small, large = (tasks.create("countdown", {"train_size": size, "test_size": 30}) for size in (10, 300))
    assert small.test == large.test
    assert large.train[:10] == small.train


def test_countdown_asks_as_the_paper_does():
    task = tasks.create("countdown", {"train_size": 1, "test_size": 1})
    numbers, target = task.train[0].columns["numbers"], task.train[0].columns["target"]
    assert prompt_text(task.train[0]) == (
        f"Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic "
        "operations (+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. "
        "And return the final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
    )


def test_countdown_as_plain_text_begins_the_thought():
    task = tasks.create("countdown", {"train_size": 150, "test_size": 60, "prompt": "plain"})
    assert all(isinstance(example.prompt, str) and example.prompt.endswith("<think>") for example in task.train)
    assert not any(check.broken for check in validate(task))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("countdown", {"number": 3}, r"unknown setting 'task_args\.number'\. Did you mean 'numbers'\? Known: fewest, "),
        ("countdown", {"numbers": 2}, r"fewest=3 is more than numbers=2: give task_args\.fewest=2"),
        ("countdown", {"numbers": "many"}, r"task_args\.numbers='many': must be a number, .* not text"),
        ("countdown", {"target_from": 50, "target_to": 20}, "target_from=50 is more than target_to=20: swap them"),
        ("countdown", {"largest": 1}, r"with these task_args there are only about 0 different examples"),
        ("conciseness", {"size": 3}, r"unknown setting 'task_args\.size'\. There are none\."),
        ("mini_sudoku", {"least_empty": 12, "most_empty": 8}, "least_empty=12 is more than most_empty=8: swap them"),
        ("concisness", {}, r"task='concisness' is not a built-in task\. Did you mean 'conciseness'\?"),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_the_fix(name, args, message):
    with pytest.raises(ConfigError, match=message):
        tasks.create(name, args)


# -------------------------------------------------------------------- rows and files


def test_a_training_file_alone_leaves_nothing_held_out(files):
    task = tasks.create("gsm8k", {"path": files["gsm8k"]["path"], "train_size": 7})
    assert (len(task.train), len(task.test)) == (7, 0)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("a.jsonl", '{"q": 1}', r"question 0 has no text under 'question' \(it holds \['q'\]\)"),
        ("a.jsonl", '{"question": "a", "answer": "5"}', "the answer of question 0 does not end in '#### number'"),
        ("a.json", "[1]", r"a\.json row 0 holds int, not an object"),
        ("a.jsonl", "{", r"a\.jsonl line 1 "),
        ("a.csv", "question,answer\nb,5\n", "does not end in '#### number'"),
    ],
)
def test_a_file_that_is_not_in_the_format_says_where(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        tasks.create("gsm8k", {"path": str(tmp_path / file)})


def test_without_a_way_to_a_hub_the_error_says_to_give_files(monkeypatch):
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    failed = r"cannot load the data set 'openai/gsm8k' \(name=main, split=train\): Name or service not known"
    with pytest.raises(DataError, match=failed + r".* give the files .*task_args\.path"):
        tasks.create("gsm8k")


def test_rows_become_numbered_examples_with_their_other_columns():
    rows = [{"prompt": "a", "x": 1}, {"prompt": [{"role": "user", "content": "b"}]}]
    made = examples(iter(rows), "train")
    assert made == (Example(0, "a", {"x": 1}), Example(1, ({"role": "user", "content": "b"},), {}))
    assert examples(None, "train") == ()


def test_rows_of_an_own_task_may_be_of_a_class_made_from_ours(tmp_path):
    (tmp_path / "own.py").write_text(
        "from dataclasses import dataclass\nfrom seedtune.tasks import Task\nfrom seedtune.types import Example\n"
        "@dataclass(frozen=True)\nclass Row(Example):\n    hint: str = ''\n"
        "def make():\n    rows = [Row(0, 'a', {}, 'h')]\n    return Task('own', rows, rows, ())\n"
    )
    (row,) = tasks.create(f"{tmp_path}/own.py:make").train
    assert (row.prompt, row.hint) == ("a", "h")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "a"}, r"row 1 of the eval data has no 'prompt' \(it holds \['question'\]\)"),
        ("text", r"row 1 of the eval data is a str, not a mapping. Give {'prompt': …}"),
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
