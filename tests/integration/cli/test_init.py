"""``seedtune init``: settings that train as they are, or one line and nothing written."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
from functools import partial
from pathlib import Path

import pytest

import runs
from seedtune.cli.init import written_files
from seedtune.config.yaml_file import load_config, parse_value
from seedtune.run import directory
from waiting import BOUND

ROWS = [{"question": f"{n} + 1?", "gold": str(n + 1)} for n in range(20)]
REWARD = """
def right(completions, gold, **_):
    return [float(text == one) for text, one in zip(completions, gold)]

def other(completions, golden):
    return [0.0] * len(completions)

def broken(completions, **_):
    raise ValueError("boom")

def words(completions, **_):
    return ["good"] * len(completions)
"""
TOY = ("--set", "engine=toy", "--set", "model=toy", "--set", "generations=1", "--set", "reward_workers=0")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "only.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / "odd.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "scores.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def held(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


def test_the_settings_train_as_they_are(command, place):
    code, output, errors = command("init", "--train-dataset", "data.jsonl", "--reward", "scores.py:right")
    assert code == 0, errors
    assert "18 rows for training, 2 held out; prompts in the column 'question'" in output
    assert "right gives 1 and 1 to '1' and '2'" in output
    assert output.endswith("next: seedtune train seedtune.yaml   (--dry-run checks the model, too)\n")
    config = load_config(Path("seedtune.yaml"))
    assert (config.model, config.prompt_column) == ("smollm2-135m", "question")
    assert command("train", "seedtune.yaml", *TOY)[0] == 0
    assert directory.RunPaths(place / "runs" / "data").report.is_file()


@pytest.mark.parametrize("data", ["data.jsonl", "only.jsonl"])
def test_without_a_reward_there_is_one_to_fill_in(command, place, data):
    code, output, errors = command("init", "--train-dataset", data, "-o", "new/mine.yaml")
    assert code == 0, errors
    assert output.endswith("next: write your reward in new/rewards.py, then: seedtune train new/mine.yaml\n")
    compile((place / "new" / "rewards.py").read_text(), "rewards.py", "exec")
    code, output, errors = command("train", "new/mine.yaml", *TOY)
    assert code == 0, errors
    assert "generation 1/1: reward " in output


def test_chats_work_with_the_reward_to_fill_in(command, place):
    rows = [{"prompt": [{"role": "user", "content": f"{n}?"}], "answer": n} for n in range(3)]
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, errors = command("init", "--train-dataset", "chats.jsonl")
    assert code == 0, errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--train-dataset is missing. Give it, or run 'seedtune init' on a terminal, where it asks."),
        (["data.jsonL"], "there is no data file or folder 'data.jsonL'. Check the path. Did you mean 'data.jsonl'?"),
        (["odd.jsonl"], "the data have no column 'prompt', but text. Give --prompt-column COLUMN."),
        (["data.jsonl", "--prompt-column", "quest"], "--prompt-column 'quest' is not in the data: question, gold."),
        (["data.jsonl", "--reward", "scores.py:rigth"], "there is no 'rigth' in it. Did you mean 'right'?"),
        (["data.jsonl", "--reward", "score.py:right"], "score.py'. Did you mean 'scores.py'? Check the path"),
        (
            ["data.jsonl", "--reward", "scores.py:other"],
            "the reward 'other' asks for 'golden', which is no column of data.jsonl (they are: gold). "
            "Did you mean 'gold'? Rename it, or the column.",
        ),
        (["data.jsonl", "--reward", "scores.py:broken"], "the reward 'broken' raised ValueError: boom, tried on '1'."),
        (["data.jsonl", "--reward", "scores.py:words"], "the reward 'words' returned 'good'"),
        (["data.jsonl", "--model", "smollm2-135"], "there is no built-in model 'smollm2-135'. Did you mean"),
        (["data.jsonl", "--model", "./nowhere"], "there is no model folder './nowhere' (with a config.json)."),
        (["data.jsonl", "-o", "."], "'.' is a folder. Give the name of a file, such as seedtune.yaml."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_value_is_one_line_and_nothing_is_written(failure, place, arguments, message):
    before = held(place)
    data = ["--train-dataset", *arguments] if arguments else []
    assert message in failure("init", *data)
    assert held(place) == before


def test_files_that_are_there_stay_unless_forced(command, failure, place):
    (place / "rewards.py").write_text("# mine\n")
    assert failure("init", "--train-dataset", "data.jsonl") == (
        "'rewards.py' is there already. Name your function with --reward rewards.py:NAME, or give --force."
    )
    with_reward = ("init", "--train-dataset", "data.jsonl", "--reward", "scores.py:right")
    assert command(*with_reward)[0] == 0
    assert failure(*with_reward) == (
        "'seedtune.yaml' is there already. Give another --output, or --force to replace it."
    )
    (place / "seedtune.yaml").write_text("")
    assert command(*with_reward, "--force")[0] == 0
    assert load_config(Path("seedtune.yaml")).task == "custom"
    assert (place / "rewards.py").read_text() == "# mine\n"


def talk(place: Path, *turns: tuple[str, str]) -> tuple[int, str]:
    """Run ``seedtune init`` on a terminal and type after each question; return the exit code and what was shown."""
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        runs.command("init"), env=runs.environment(), cwd=place, preexec_fn=partial(os.login_tty, theirs)
    )
    os.close(theirs)
    shown, answered = "", 0
    for question, typed in (*turns, (None, "")):
        while question is None or question not in shown[answered:]:
            try:
                part = os.read(terminal, 1 << 16) if select.select([terminal], [], [], BOUND)[0] else b""
            except OSError:  # the process has ended
                part = b""
            if not part:
                break
            shown += part.decode()
        answered = len(shown)
        os.write(terminal, typed.encode())
    code = process.wait(BOUND)
    os.close(terminal)
    return code, shown


def test_on_a_terminal_it_asks_again_after_a_wrong_answer(place):
    code, shown = talk(
        place,
        ("Model", "\n"),
        ("Training data", "nothing.jsonl\n"),
        ("Training data", "odd.jsonl\n"),
        ("Column", "word\n"),
        ("Column", "text\n"),
        ("Reward", "\n"),
        ("Settings", "mine.yaml\n"),
    )
    assert code == 0, shown
    assert "Model [smollm2-135m]: " in shown
    assert "error: there is no data file or folder 'nothing.jsonl'." in shown
    assert "error: --prompt-column 'word' is not in the data: text." in shown
    config = load_config(place / "mine.yaml")
    assert (config.prompt_column, config.model) == ("text", "smollm2-135m")
    assert (place / "rewards.py").is_file()
    assert "starting" not in shown


@pytest.mark.parametrize("key", ["\x04", "\x03"], ids=["Ctrl-D", "Ctrl-C"])
def test_it_can_be_left_at_any_question(place, key):
    before = held(place)
    code, shown = talk(place, ("Model", "\n"), ("Training data", key))
    assert code == 130, shown
    assert "Traceback" not in shown
    assert held(place) == before


@pytest.mark.parametrize(
    "value",
    [
        "a/b.jsonl",
        "null",
        "1e3",
        "yes",
        "a, b",
        "x # y",
        "x: y",
        "[z]",
        "'q'",
        "σ",
        " ",
        "",
        "-",
        "a\nb",
        {"path": "r"},
    ],
    ids=repr,
)
def test_values_are_written_as_they_are_read(value):
    assert parse_value(f"[{written_files.scalar(value)}]") == [value]
