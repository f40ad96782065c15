"""Own data and rewards given in Python, as TRL takes them; the same runs as from YAML and flags."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import yaml

import runs
from own_data import ONE, rows, sets, toy
from seedtune.errors import ConfigError
from seedtune.evaluation import held_out
from seedtune.run import directory, ledger, recorded_config
from seedtune.trainer import ESTrainer


def test_python_takes_functions_paths_and_mappings_alike(folder):
    def closeness(completions, target, **_):
        return [-abs(float(text) - goal) for text, goal in zip(completions, target, strict=True)]

    given = [closeness, "rewards.py:closeness", {"path": "rewards.py:near", "adapter": "pair"}]
    data = ["data.jsonl", rows(), (row for row in rows())]
    records = []
    for number, (reward, train) in enumerate(zip(given, data, strict=True)):
        ESTrainer(args=toy(f"run{number}"), model="toy", reward_funcs=reward, train_dataset=train).train()
        records.append(ledger.read(directory.RunPaths(Path(f"run{number}")).ledger).records)
    assert records[0] == records[1] == records[2]


def test_a_run_of_yaml_of_flags_and_of_arguments_by_name_and_by_position_is_one_run(folder, command):
    given = {"reward_funcs": "rewards.py:closeness", "train_dataset": "data.jsonl", "eval_dataset": "data.jsonl"}
    flags = (*ONE, "--eval-dataset", "data.jsonl")
    settings = {key: value for key, value in toy("yaml").model_dump(mode="json").items() if key not in ("task", *given)}
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, **given, "model": "toy"}))
    for arguments in (("train", "config.yaml"), (*flags, *sets("generations=3", "toy.size=4", "output_dir=flags"))):
        code, _, errors = command(*arguments)
        assert code == 0, errors
    ESTrainer(model="toy", args=toy("names"), **given).train()
    reward, train, held_out = given.values()
    ESTrainer("toy", reward, toy("places"), train, held_out, None, None, []).train()
    for name in ("flags", "names", "places"):
        assert runs.ledger_bytes(folder / "yaml") == runs.ledger_bytes(folder / name)
        here = recorded_config.run_config(folder / name)
        assert here.replace(output_dir="yaml") == recorded_config.run_config(folder / "yaml")


def test_the_arguments_stand_in_trls_order():
    theirs = (
        *("self", "model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class"),
        *("reward_processing_classes", "callbacks"),
    )
    assert tuple(inspect.signature(ESTrainer.__init__).parameters)[: len(theirs)] == theirs


def test_several_held_out_sets_are_measured_each_by_its_name_and_together(folder, command):
    low, high = (
        [{"prompt": "x", "target": -9.0}] * 3,
        [{"prompt": f"word {index}", "target": 9.0} for index in range(2)],
    )
    Path("high.jsonl").write_text("".join(json.dumps(row) + "\n" for row in high))
    given = {"reward_funcs": "rewards.py:closeness", "train_dataset": "data.jsonl"}
    ESTrainer("toy", args=toy("objects"), eval_dataset={"low": low, "high": "high.jsonl"}, **given).train()
    Path("low.jsonl").write_text("".join(json.dumps(row) + "\n" for row in low))
    config = toy("files", **given, model="toy", eval_dataset={"low": "low.jsonl", "high": "high.jsonl"})
    ESTrainer(args=config).train()
    held_out = [
        [row for row in map(runs.untimed, runs.rows(directory.RunPaths(Path(name)).metrics)) if "eval_reward" in row]
        for name in ("objects", "files")
    ]
    assert held_out[0] == held_out[1]
    first = held_out[0][0]
    assert first["eval_low/reward"] != first["eval_high/reward"]
    assert first["eval_reward"] == pytest.approx((3 * first["eval_low/reward"] + 2 * first["eval_high/reward"]) / 5)
    assert {"eval_low/length", "eval_high/truncated"} <= first.keys()
    one, two = (ledger.read(directory.RunPaths(Path(name)).ledger) for name in ("objects", "files"))
    assert (one.records, one.header.config) == (two.records, two.header.config)

    code, _, errors = command("resume", "files", "--generations", "4")
    assert code == 0, errors
    last = runs.rows(directory.RunPaths(Path("files")).metrics)[-1]
    assert last["eval_high/reward"] is not None
    with pytest.raises(ConfigError, match="held-out data were Python objects: resume it from Python"):
        ESTrainer(args=recorded_config.run_config(Path("objects")))
    again = ESTrainer(
        "toy", args=toy("objects", generations=4), eval_dataset={"low": low, "high": "high.jsonl"}, **given
    )
    assert again.train(resume_from_checkpoint=True)["eval_low/reward"] == last["eval_low/reward"]


def test_eval_has_a_row_for_every_named_set_with_the_figures_of_training(folder, command):
    for name, target in {"low": -9.0, "high": 9.0}.items():
        Path(f"{name}.jsonl").write_text(json.dumps({"prompt": "x", "target": target}) + "\n")
    given = {"model": "toy", "reward_funcs": "rewards.py:closeness", "train_dataset": "data.jsonl"}
    ESTrainer(args=toy("run", **given, eval_dataset={"low": "low.jsonl", "high": "high.jsonl"})).train()
    last = runs.rows(directory.RunPaths(Path("run")).metrics)[-1]
    code, output, _ = command("eval", "run", "--baseline", "base", "--samples", "2", "--json", "-")
    assert code == 0
    results = [subject["results"][0] for subject in json.loads(output)["subjects"]]
    found = results[0]["measures"]
    for name in ("reward", "low/reward", "high/reward", "low/length", "high/unscored"):
        assert found[name]["value"] == pytest.approx(last[f"eval_{name}"] if "/" in name else last["eval_reward"])
    assert {"low/sampled_reward", "high/majority_reward@2"} <= found.keys()
    assert results[1]["first_less_this"]["low/reward"]["value"] == pytest.approx(
        found["low/reward"]["value"] - results[1]["measures"]["low/reward"]["value"]
    )
    assert "high/reward" in command("eval", "run")[1]


def test_as_many_prompts_of_every_held_out_set_are_evaluated(folder):
    sets = {"one": rows(), "two": rows(5)}
    given = {"model": "toy", "reward_funcs": "rewards.py:closeness", "train_dataset": "data.jsonl"}
    trainer = ESTrainer(args=toy("run", eval_prompts=2), eval_dataset=sets, **given)
    shown = held_out.prompts_of(trainer.task, trainer.config)
    assert [example.id for example in shown] == [0, 1, len(sets["one"]), len(sets["one"]) + 1]


def test_weights_may_stand_in_args_as_in_trl(folder):
    rewards = ["rewards.py:closeness", "rewards.py:brevity"]
    given = {"model": "toy", "reward_funcs": rewards, "train_dataset": "data.jsonl"}
    in_args = ESTrainer(args=toy("run", reward_weights=[1.0, 0.5]), **given)
    beside = ESTrainer(args=toy("run"), reward_weights=[1.0, 0.5], **given)
    assert [reward.weight for reward in in_args.task.rewards] == [1.0, 0.5]
    assert in_args.config == beside.config
    with pytest.raises(ConfigError, match="2 reward functions but 1 reward_weights"):
        ESTrainer(args=toy("run", reward_weights=[1.0]), **given)
    with pytest.raises(ConfigError, match="reward_weights is for own data and rewards"):
        ESTrainer(args=toy("run", reward_weights=[1.0], task="toy"))


def test_a_run_of_paths_given_in_python_resumes_from_the_command_line(folder, command):
    ESTrainer(args=toy("run"), model="toy", reward_funcs="rewards.py:closeness", train_dataset="data.jsonl").train()
    code, output, errors = command("resume", "run", "--generations", "4")
    assert code == 0, errors
    assert "done: 4 generations" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_dataset": rows()}, "this run's training data were"),
        ({"eval_dataset": rows(2)}, "this run's held-out data were"),
        (
            {"reward_funcs": lambda completions: [0.0] * len(completions)},
            "this run's reward functions were",
        ),
    ],
    ids=["train", "eval", "reward"],
)
def test_a_run_of_python_objects_says_that_only_its_program_can_resume_it(folder, failure, changes, message):
    given = {"reward_funcs": "rewards.py:closeness", "train_dataset": "data.jsonl", **changes}
    ESTrainer(args=toy("run"), model="toy", **given).train()
    line = failure("resume", "run", "--generations", "4")
    assert line == f"{message} Python objects: resume it from Python with the same ESTrainer."
    again = ESTrainer(args=recorded_config.run_config(Path("run")).replace(generations=4), **given)
    again.train(resume_from_checkpoint=True)
    assert again.generation == 4


def test_data_given_twice_are_an_error(folder):
    with pytest.raises(ConfigError, match="train_dataset is given twice"):
        ESTrainer(
            args=toy("run", train_dataset="other.jsonl", reward_funcs="rewards.py:closeness"),
            train_dataset="data.jsonl",
        )
