"""What the help promises: examples that run, JSON that is read, completion, and the table of exit codes."""

from __future__ import annotations

import io
import json
import math
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import models
import runs
from seedtune.cli.app import COMMANDS, EXAMPLES, app
from seedtune.cli.console import as_json

ROOT = Path(__file__).parents[3]
SLOW = ("doctor",)
"""Commands whose examples other tests run: they start every engine."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "data.jsonl").write_text('{"prompt": "a", "answer": "b"}\n' * 4)
    (folder / "rewards.py").write_text("def my_reward(completions, **_):\n    return [1.0] * len(completions)\n")
    return folder


def test_the_examples_of_the_help_run(command, place, monkeypatch):
    monkeypatch.chdir(place)
    for name, lines in EXAMPLES.items():
        if name in SLOW:
            continue
        for line in lines:
            program, _, rest = line.partition("<")[0].partition(" ")
            assert program == "seedtune"
            if line == "seedtune init":  # it asks
                continue
            monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
            code, output, errors = command(*shlex.split(rest))
            assert code == 0, (line, errors)
            if "--json" in line and name != "chat":
                json.loads(output)
    assert "examples:\n    seedtune verify runs/toy\n" in command("verify", "--help")[1].lower()


def test_examples_are_of_commands():
    assert EXAMPLES.keys() <= COMMANDS.keys()


def test_results_as_json_have_what_the_tables_show(command, run):
    read = {}
    for arguments in (("samples", run), ("verify", run), ("diff", run, run)):
        code, output, errors = command(*arguments, "--json")
        assert code == 0, errors
        assert output.isascii()
        read[arguments[0]] = json.loads(output)
    assert len(read["samples"]["answers"]) == 3
    assert {"before", "after"} == read["samples"]["answers"][0].keys()
    assert (read["verify"]["verified"], read["verify"]["generations"]) == (True, 5)
    assert (read["diff"]["equal"], read["diff"]["generation"]) == (True, None)


def test_runs_that_differ_are_json_and_exit_code_1(command, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    lines = (other / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (other / "ledger.jsonl").write_bytes(b"".join(lines[:-3]))
    code, output, _ = command("diff", run, other, "--json")
    assert code == 1
    assert json.loads(output)["equal"] is False


def test_a_plan_is_json(command, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    models.save_family("llama", tmp_path / "model", template=None)
    settings = {
        "model": str(tmp_path / "model"),
        "train_dataset": "data.jsonl",
        "reward_funcs": ["rewards.py:my_reward"],
        "max_completion_length": 8,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    code, output, errors = command("plan", tmp_path / "config.yaml", "--devices", "h100", "--json")
    assert code == 0, errors
    plan = json.loads(output)
    assert plan["memory"][0]["total"] > 0
    assert plan["seconds"][0]["device"] == "h100"
    assert plan["seconds"][0]["generation"] > 0


def test_numbers_that_json_lacks_become_null():
    assert as_json({"a": (math.nan, math.inf, 1.5, 2, True), 3: Path("x")}) == {
        "a": [None, None, 1.5, 2, True],
        "3": "x",
    }
    assert as_json(SimpleNamespace(a=1)) == "namespace(a=1)"


def test_the_shell_completes_commands():
    done = runs.cli(_SEEDTUNE_COMPLETE="complete_bash", COMP_WORDS="seedtune tr", COMP_CWORD="1")
    assert done.stdout.split() in (["train"], []), done.stderr
    script = runs.cli("--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert script.returncode == 0, script.stderr
    assert "complete_bash" in script.stdout


def test_completion_is_installed_into_the_home_folder(tmp_path):
    done = runs.cli(
        "--install-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1", HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert any(path.is_file() for path in tmp_path.rglob("*bash*"))


def test_every_command_stands_in_the_help():
    assert {one.name for one in app.registered_commands} == COMMANDS.keys()
