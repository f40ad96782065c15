"""reasoning-gym's generators by name: which can be used, which are refused and why, and what a hostile answer gets."""

from __future__ import annotations

import math

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from reward_calls import score
from seedtune import tasks
from seedtune.errors import ConfigError, MissingExtraError
from seedtune.rewards.sources.gym_score import evaluates, gym_score
from seedtune.tasks.validation import validate

EVALUATE = {
    "binary_matrix": "eval",
    "countdown": "parse_expr",
    "intermediate_integration": "parse_expr",
    "n_queens": "eval",
    "polynomial_multiplication": "parse_expr",
    "puzzle24": "parse_expr",
    "simple_integration": "parse_expr",
    "spiral_matrix": "eval",
    "string_insertion": "eval",
}
"""Generators whose scorer runs something on the answer."""
LOOSE = {"game_of_life_halting"}
"""Those whose scorer gives full marks to anything, on some items."""
BROKEN = {"arc_agi", "rearc"}
"""Those whose scorer compares with tuples, which plain data do not keep."""
PARTS = {"composite"}
"""Needs other generators in its settings."""
HOSTILE = (
    "1e999999999",
    "9" * 5000,
    "[" * 9000,
    "(" * 9000,
    "\x00",
    "9**9**9",
    "-1e-99999",
    "٣",
    "{'a':" * 2000,
    "1/0",
    "nan",
)


def test_the_generators_that_evaluate_answers_are_known():
    found = {name: evaluates(name, DATASETS[name][0]) for name in DATASETS}
    assert {name: culprit for name, culprit in found.items() if culprit} == EVALUATE


@pytest.mark.parametrize("name", sorted(set(DATASETS) - set(EVALUATE) - LOOSE - BROKEN - PARTS))
def test_a_generator_gives_its_answers_full_marks_and_nothing_to_hostile_ones(name):
    task = tasks.create(f"reasoning_gym:{name}", {"train_size": 1, "test_size": 2})
    held = task.test
    if task.gold is not None:
        assert score(task.rewards, held, [task.gold(example) for example in held])["score"] == [1.0, 1.0]
    assert score(task.rewards, held, ["", ""])["score"] == [0.0, 0.0]
    for text in HOSTILE:
        (marks, _) = score(task.rewards, held, [f"<answer>{text}</answer>"] * 2)["score"]
        assert math.isfinite(marks)
        assert 0.0 <= marks < 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n_queens", "is refused: its scorer runs eval on what the model wrote"),
        ("countdown", "is refused: its scorer runs parse_expr .* Use task=countdown"),
        ("game_of_life_halting", "is refused: its scorer gives full marks to any answer"),
        ("arc_agi", r"is refused: its scorer needs more than plain data\. Use task=arc"),
        ("composite", r"task_args\.settings=\{\}: composite says: Must specify at least one dataset"),
        ("spell_backwards", r"reasoning-gym has no generator 'spell_backwards'\. Did you mean 'spell_backward'\?"),
    ],
)
def test_a_generator_that_cannot_be_trusted_is_refused_with_the_reason(name, message):
    with pytest.raises(ConfigError, match=message):
        tasks.create(f"reasoning_gym:{name}", {"train_size": 40, "test_size": 0})


def test_its_settings_are_the_generators_own():
    args = {"train_size": 5, "test_size": 0, "settings": {"min_word_len": 3, "max_word_len": 3}}
    task = tasks.create("reasoning_gym:spell_backward", args)
    assert {len(example.columns["answer"]) for example in task.train} == {3}
    with pytest.raises(
        ConfigError, match=r"unknown setting 'task_args\.settings\.max_len'\. Did you mean 'max_word_len'"
    ):
        tasks.create("reasoning_gym:spell_backward", {"settings": {"max_len": 3}})


def test_a_generator_with_too_few_different_questions_says_how_many():
    args = {"train_size": 50, "test_size": 50, "settings": {"min_rows": 1, "max_rows": 1}}
    with pytest.raises(ConfigError, match=r"made only \d+ different questions of the 100 asked for"):
        tasks.create("reasoning_gym:tower_of_hanoi", {**args, "settings": {"max_disks": 3}})


@pytest.mark.no_cover
def test_a_generator_passes_validation_on_two_hundred_items():
    task = tasks.create("reasoning_gym:chain_sum", {"train_size": 150, "test_size": 60})
    checks = validate(task)
    assert len(checks[0].values) == 210
    assert not any(check.broken for check in checks)


def test_what_a_scorer_gives_for_nothing_is_taken_off():
    (entry,) = reasoning_gym.create_dataset("fraction_simplification", seed=1, size=1)
    columns = {"generator": ["fraction_simplification"] * 2, "entry": [entry] * 2, "floor": [0.01] * 2}
    wrong, right = gym_score(["<answer>x</answer>", f"<answer>{entry['answer']}</answer>"], **columns)
    assert (wrong, right) == (0.0, 1.0)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'seedtune\[tasks\]'"):
        tasks.create("reasoning_gym:chain_sum")
