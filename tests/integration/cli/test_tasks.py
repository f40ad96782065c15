"""``seedtune tasks`` and ``seedtune validate`` as a user meets them."""

from __future__ import annotations

import subprocess
import sys

import runs
from seedtune import tasks


def test_tasks_lists_every_task_with_its_reward_and_what_it_needs(command):
    code, output, _ = command("tasks")
    assert code == 0
    rows = [line for line in output.splitlines() if line.startswith("│")]
    assert [row.split("│")[1].strip() for row in rows] == list(tasks.TASKS)
    assert "right equation + 0.1 · format" in output
    assert "reasoning_gym:NAME" in output
    assert "file.py:function" in output


def test_validate_shows_a_table_and_ends_with_0_when_the_task_is_valid(command):
    code, output, _ = command("validate", "countdown", "--items", "200", "--set", "task_args.numbers=3")
    assert code == 0
    assert "countdown: 200 examples" in output
    assert output.splitlines()[-1] == "countdown is valid"


def test_validate_ends_with_1_when_the_task_is_broken(command, tmp_path):
    (tmp_path / "own.py").write_text(
        "from seedtune.tasks import Reward, Task, examples\n"
        "def f():\n"
        "    rows = examples([{'prompt': 'a', 'answer': 'b'}], 'train')\n"
        "    return Task('own', rows, rows, (Reward('one', lambda completions: [1.0 for _ in completions]),))\n"
    )
    code, output, _ = command("validate", f"{tmp_path / 'own.py'}:f")
    assert code == 1
    assert "I do not know.: 2 of 2 got full marks" in output
    assert output.splitlines()[-1] == "own is broken"


def test_validate_says_in_the_row_that_a_reward_failed_and_goes_on(command, tmp_path):
    (tmp_path / "own.py").write_text(
        "from seedtune.tasks import Reward, Task, examples\n"
        "def first(completions, answer): return [float(c.split()[0] == a) for c, a in zip(completions, answer)]\n"
        "def f():\n"
        "    rows = examples([{'prompt': 'Say b.', 'answer': 'b'}], 'train')\n"
        "    return Task('own', rows, rows, (Reward('one', first),), full_marks=1.0)\n"
    )
    code, output, _ = command("validate", f"{tmp_path / 'own.py'}:f")
    assert code == 0
    assert any(line.startswith("│ empty") and "failures" in line for line in output.splitlines())
    assert "empty: the reward function 'one' failed on 2: it raised IndexError: list index out of range" in output


def test_validate_of_a_log_probability_objective_says_that_there_is_nothing(failure, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "answer": "b"}\n' * 4)
    (tmp_path / "config.yaml").write_text(f"engine: toy\ntrain_dataset: {data}\nobjective: logprob\n")
    assert "there is no reward to validate" in failure("validate", str(tmp_path / "config.yaml"))


def test_validate_takes_a_configuration_file(command, tmp_path):
    config = runs.write_config(runs.toy(tmp_path / "run"), tmp_path / "config.yaml")
    code, output, _ = command("validate", config)
    assert code == 0
    assert output.splitlines()[-1] == "toy is valid"


def test_a_bad_setting_of_a_task_is_one_line(failure):
    line = failure("validate", "countdown", "--set", "task_args.numberz=3")
    assert line.startswith("unknown setting 'task_args.numberz'. Did you mean 'numbers'?")


def test_listing_tasks_imports_no_package_that_only_some_need():
    code = "import seedtune.tasks, sys; print([m for m in {names} if m in sys.modules])"
    names = ["torch", "sympy", "reasoning_gym", "math_verify", "jsonschema", "datasets"]
    done = subprocess.run(
        [sys.executable, "-c", code.format(names=names)],
        capture_output=True,
        text=True,
        check=True,
        env=runs.environment(),
    )
    assert done.stdout.strip() == "[]"
