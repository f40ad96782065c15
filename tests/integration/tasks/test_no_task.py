"""Settings that name neither data and a reward nor a task: said before anything is loaded or written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import runs
from seedtune import ESConfig, ESTrainer, EvalConfig, evaluate
from seedtune.errors import ConfigError
from seedtune.planning.plan import plan_config
from seedtune.planning.probe import probe_config
from seedtune.run import ledger, recorded_config
from seedtune.run.directory import RunPaths
from seedtune.tasks import TASKS

ROWS = [{"prompt": text, "answer": "1"} for text in ("a", "b", "c")]
ADVICE = ("--train-dataset", "--reward", "train_dataset", "reward_funcs", "--set task=NAME", "seedtune tasks")


def says_what_is_missing(line: str) -> bool:
    return line.startswith("nothing says what to train on. ") and all(words in line for words in ADVICE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model.yaml").write_text("model: smollm2-135m\n")
    (tmp_path / "objective.yaml").write_text("engine: toy\nobjective: logprob\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["train"],
        ["train", "--model", "smollm2-135m"],
        ["train", "--model", "no/such/model"],
        ["train", "--model", "smollm2-135m", "--dry-run"],
        ["train", "--model", "smollm2-135m", "--eval-dataset", "data.jsonl"],
        ["train", "model.yaml", "--set", "task=custom"],
        ["probe", "model.yaml"],
        ["plan", "model.yaml"],
        ["plan", "model.yaml", "--devices", "h100"],
        ["validate", "model.yaml"],
    ],
    ids=" ".join,
)
def test_a_command_without_data_and_reward_says_what_is_missing(folder, failure, arguments):
    assert says_what_is_missing(failure(*arguments))
    assert {path.name for path in folder.iterdir()} == {"model.yaml", "objective.yaml"}


def train(config: ESConfig) -> None:
    ESTrainer(args=config)


@pytest.mark.parametrize("start", [train, probe_config, plan_config])
def test_python_without_data_and_reward_says_what_is_missing(start):
    with pytest.raises(ConfigError) as refused:
        start(ESConfig(model="smollm2-135m"))
    assert says_what_is_missing(str(refused.value))


def test_an_objective_that_is_a_reward_asks_for_data_alone(folder, failure):
    assert "objective=logprob, needs no reward_funcs" in failure("train", "objective.yaml")


def test_the_default_is_no_built_in_task_and_every_run_records_its_task(folder):
    assert ESConfig().task not in TASKS
    ESTrainer(args=runs.toy(folder / "own", generations=1), reward_funcs=echo, train_dataset=ROWS).train()
    ESTrainer(args=runs.toy(folder / "toy", generations=1)).train()
    for name, task in {"own": "custom", "toy": "toy"}.items():
        paths = RunPaths(folder / name)
        assert ledger.read(paths.ledger).header.config["task"] == task
        assert f"task: {task}\n" in paths.config.read_text()


def echo(completions, **_):
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize(
    ("reward", "settings", "words"),
    [
        (echo, {}, "training data and reward functions were Python objects"),
        (None, {"objective": "logprob"}, "training data were Python objects"),
    ],
    ids=["reward", "logprob"],
)
def test_a_ledger_alone_of_a_run_of_python_objects_says_who_can_go_on(folder, command, reward, settings, words):
    config = runs.toy(folder / "run", generations=1, **settings)
    ESTrainer(args=config, reward_funcs=reward, train_dataset=ROWS, eval_dataset=ROWS).train()
    RunPaths(folder / "run").config.unlink()
    assert recorded_config.run_config(folder / "run").task == "custom"
    for arguments in (["resume", "run", "--generations", "2"], ["eval", "run"]):
        _, _, errors = command(*arguments)
        assert errors.endswith(f"error: this run's {words}: resume it from Python with the same ESTrainer.\n")


def test_a_model_is_evaluated_on_the_task_that_is_named(folder, command, failure):
    line = failure("eval", "base", "--set", "engine=toy")
    assert line.startswith("nothing says what to evaluate 'base' on. Give --task NAME")
    code, output, errors = command("eval", "base", "--set", "engine=toy", "--task", "toy", "--limit", "2")
    assert code == 0, errors
    assert "base, toy held out, 2 prompts" in output


def test_settings_of_a_model_may_name_the_task_and_its_arguments():
    config = ESConfig(engine="toy", model="base", task="countdown", task_args={"numbers": 3})
    (result,) = evaluate("base", config=config, eval_config=EvalConfig(limit=2)).subjects[0].results
    assert (result.task, result.prompts) == ("countdown", 2)


def test_the_first_page_has_a_whole_run(folder, command):
    page = (Path(__file__).parents[3] / "docs" / "getting-started.md").read_text()
    blocks = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    data, reward = (next(text for kind, text in blocks if kind == wanted) for wanted in ("json", "python"))
    call = next(text for kind, text in blocks if kind == "bash" and "opposites.jsonl" in text)
    (folder / "opposites.jsonl").write_text(data)
    (folder / "rewards.py").write_text(reward)
    program, *arguments = call.split()
    assert program == "seedtune"
    code, output, errors = command(*arguments, "--dry-run", "--set", "engine=toy")
    assert code == 0, errors
    assert "task custom: 100 generations of N = 32 × 15 prompts" in output
