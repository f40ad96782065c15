"""The Python ESTrainer on a user's own data and rewards, as the README shows it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import runs
import seedtune
from scores import brevity, closeness
from seedtune.config.config import Config
from seedtune.engines.toy.engine import Characters
from seedtune.errors import ConfigError, DataError, RewardError, RunError
from seedtune.run import directory, ledger, recorded_config
from seedtune.trainer import ESTrainer

DATA = [{"prompt": f"word {index}", "target": index / 10} for index in range(6)]


def trainer(root, config=None, **changes) -> ESTrainer:
    given = {"reward_funcs": closeness, "train_dataset": DATA, "eval_dataset": DATA[:2], **changes}
    return ESTrainer(args=config or runs.toy(root), **given)


def test_twenty_lines_train_on_own_data_resume_and_save_a_model(tmp_path):
    from seedtune import ESConfig, ESTrainer

    def reward(prompts, completions, target, **kwargs):
        return [-abs(float(text) - goal) for text, goal in zip(completions, target, strict=True)]

    trainer = ESTrainer(
        args=ESConfig(
            engine="toy", output_dir=str(tmp_path / "run"), generations=30, population=16, sigma=0.05, alpha=0.2
        ),
        model="my-model",
        reward_funcs=reward,
        train_dataset=[{"prompt": f"word {index}", "target": 0.5} for index in range(8)],
        eval_dataset=[{"prompt": "another word", "target": 0.5}],
    )
    before = trainer.evaluate()
    after = trainer.train()
    trainer.save_model(tmp_path / "model")

    assert after["eval_reward"] > before["eval_reward"]
    assert trainer.evaluate()["eval_reward"] == after["eval_reward"]
    assert "\n# my-model, fine-tuned by evolution strategies\n" in (tmp_path / "model" / "README.md").read_text()
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert all(np.array_equal(saved[name], array) for name, array in trainer.engine.weights.tensors.items())


class Stop:
    def on_start(self, trainer, info, first):
        self.first = first

    def on_generation(self, metrics):
        if metrics["generation"] == 3:
            raise KeyboardInterrupt

    def on_evaluate(self, metrics):
        pass

    def on_end(self, trainer):
        pass


def test_a_run_on_own_data_resumes_from_python_to_the_same_bits(tmp_path):
    straight = trainer(tmp_path / "straight").train()
    stopped = trainer(tmp_path / "stopped", callbacks=[Stop()])
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    stopped.callbacks = ()
    resumed = stopped.train(resume_from_checkpoint=True)
    assert resumed["eval_reward"] == straight["eval_reward"]
    assert stopped.generation == 5
    assert runs.ledger_bytes(tmp_path / "stopped") == runs.ledger_bytes(tmp_path / "straight")
    again = trainer(tmp_path / "stopped")
    assert again.train(resume_from_checkpoint=True) == resumed
    assert again.engine.fingerprint() == stopped.engine.fingerprint()


def test_a_run_resumes_from_its_directory_as_from_true_and_from_no_other(tmp_path):
    trainer(tmp_path / "whole").train()
    trainer(tmp_path / "run", runs.toy(tmp_path / "run", generations=2)).train(False)
    trainer(tmp_path / "run", runs.toy(tmp_path / "run", generations=4)).train(tmp_path / "run")
    trainer(tmp_path / "run").train(resume_from_checkpoint=f"{tmp_path}/run/")
    assert runs.ledger_bytes(tmp_path / "run") == runs.ledger_bytes(tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"whole' is not output_dir='.*run': a run continues in its own directory"):
        trainer(tmp_path / "run").train(str(tmp_path / "whole"))


def test_a_run_on_own_data_cannot_be_resumed_without_it(tmp_path):
    trainer(tmp_path).train()
    with pytest.raises(ConfigError, match="resume it from Python with the same ESTrainer"):
        ESTrainer(args=recorded_config.run_config(tmp_path))


def test_resuming_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(RunError, match="is not a run directory"):
        trainer(tmp_path / "nothing").train(resume_from_checkpoint=True)
    assert not (tmp_path / "nothing").exists()


def test_training_twice_into_one_directory_is_refused(tmp_path):
    one = trainer(tmp_path)
    one.train()
    fingerprint = one.engine.fingerprint()
    with pytest.raises(RunError, match="is already used"):
        one.train()
    assert one.engine.fingerprint() == fingerprint


def test_callbacks_hear_of_everything_in_order(tmp_path):
    heard = []

    class Listener:
        def on_start(self, trainer, info, first):
            heard.append(("start", info.model, first))

        def on_generation(self, metrics):
            heard.append(("generation", metrics["generation"]))

        def on_evaluate(self, metrics):
            heard.append(("evaluate", metrics["generation"]))

        def on_end(self, trainer):
            heard.append(("end", trainer.generation))

    trainer(tmp_path, runs.toy(tmp_path, generations=2, eval_steps=0), callbacks=[Listener()]).train()
    assert heard == [
        ("start", "toy", 0), ("evaluate", 0), ("generation", 1), ("generation", 2), ("evaluate", 2), ("end", 2),
    ]  # fmt: skip


EVENTS = ("on_start", "on_generation", "on_evaluate", "on_end")


def listener(event: str, hear, *others: str):
    """A callback with a method for one event only, and ``others`` that are not events."""
    return type("Listener", (), {name: staticmethod(hear) for name in (event, *others)})()


@pytest.mark.parametrize("event", EVENTS)
def test_a_callback_needs_only_the_events_it_wants(tmp_path, event):
    heard = []
    run = trainer(tmp_path, runs.toy(tmp_path, generations=2), callbacks=[listener(event, lambda *_: heard.append(1))])
    run.train()
    assert (run.generation, len(heard)) == (2, {"on_generation": 2, "on_evaluate": 2}.get(event, 1))


class Forwarding:
    """A callback whose methods are another's."""

    on_end = None

    def __init__(self, other) -> None:
        self.other = other

    def __getattr__(self, name: str):
        return getattr(self.other, name)


@pytest.mark.parametrize("wrap", [Forwarding, lambda one: one], ids=["forwarding", "with helpers"])
def test_a_callback_may_have_methods_of_its_own_and_forward_the_events(tmp_path, wrap):
    heard = []
    one = listener("on_start", lambda *_: heard.append(1), "on_done", "on_started")
    trainer(tmp_path, runs.toy(tmp_path, generations=1), callbacks=[wrap(one)]).train()
    assert heard == [1]


@pytest.mark.parametrize("event", EVENTS)
def test_a_callback_that_raises_costs_nothing(tmp_path, event):
    straight = trainer(tmp_path / "straight")
    straight.train()

    def fail(*_):
        raise OSError("the tracker is away")

    stopped = trainer(tmp_path / "stopped", callbacks=[listener(event, fail)])
    with pytest.raises(OSError, match="the tracker is away"):
        stopped.train()
    trainer(tmp_path / "stopped").train(resume_from_checkpoint=True)
    assert runs.ledger_bytes(tmp_path / "stopped") == runs.ledger_bytes(tmp_path / "straight")


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (listener("on_generatoin", print), "waits for on_generatoin, which is no event. Did you mean 'on_generation'?"),
        (listener("on_epoch_begin", print), "waits for on_epoch_begin, which is no event. The events are on_start, "),
        (listener("on_end", print, "on_strat"), "waits for on_strat, which is no event. Did you mean 'on_start'?"),
        (
            print,
            "has no method for an event. The events are on_start, on_generation, on_evaluate, on_completions, on_end.",
        ),
        (Stop, "is a class: give an instance. The events are "),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_written(tmp_path, callback, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        trainer(tmp_path / "run", callbacks=[callback]).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"callbacks": Stop()}, "callbacks is a Stop, not a list. Put it into one: callbacks=[…]."),
        ({"reward_funcs": 3}, "reward_funcs is a int, not a list."),
        (
            {"model": seedtune.ESConfig()},
            "model is an ESConfig: the arguments are in TRL's order. Give ESTrainer(",
        ),
        ({"reward_processing_classes": [None, None]}, "2 reward_processing_classes for 1 reward_funcs. Give one each"),
        ({"reward_weights": 1.0}, "reward_weights is a float, not a list."),
        ({"config": {"engine": "toy"}}, "args is a dict, not an ESConfig. Give ESConfig(**settings)."),
    ],
)
def test_an_argument_of_another_type_is_named(tmp_path, given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        trainer(tmp_path, **given)


def test_paths_may_be_path_objects_wherever_text_names_a_file(tmp_path):
    data, rewards = tmp_path / "data.jsonl", tmp_path / "rewards.py"
    data.write_text("".join(json.dumps(row) + "\n" for row in DATA))
    rewards.write_text("def score(completions, **_): return [0.5] * len(completions)\n")
    given = {"reward_funcs": Path(f"{rewards}:score"), "train_dataset": data, "eval_dataset": data}
    config = {**runs.toy(tmp_path / "one").model_dump(), "model": "toy"}
    one = ESTrainer(args=Config.create(config), **given, model=Path("toy"), callbacks=None)
    config |= {**given, "task": "custom", "train_dataset": {"path": data}, "model": Path("toy")}
    two = ESTrainer(args=Config(**{**config, "output_dir": tmp_path / "two"}))
    assert one.config == two.config.replace(output_dir=tmp_path / "one")
    assert (one.config.train_dataset.path, one.config.reward_funcs[0].path) == (str(data), f"{rewards}:score")
    one.train()
    assert recorded_config.run_config(tmp_path / "one").train_dataset.path == str(data)


def test_a_run_whose_prompts_are_read_otherwise_is_not_resumed(tmp_path, monkeypatch):
    trainer(tmp_path, runs.toy(tmp_path, generations=2)).train()
    trainer(tmp_path, runs.toy(tmp_path, generations=3)).train(resume_from_checkpoint=True)
    read = Characters.encode
    monkeypatch.setattr(Characters, "encode", lambda self, prompts: [[2, *ids] for ids in read(self, prompts)])
    with pytest.raises(RunError, match=r"reads the training prompts as other tokens .* revision: model=ORG/NAME@"):
        trainer(tmp_path, runs.toy(tmp_path, generations=4)).train(resume_from_checkpoint=True)


def test_several_rewards_are_weighted_and_reported_by_name(tmp_path):
    trainer(tmp_path, reward_funcs=[closeness, brevity], reward_weights=[1.0, 0.0]).train()
    metrics = next(row for row in runs.rows(directory.RunPaths(tmp_path).metrics) if "reward" in row)
    assert metrics["rewards/brevity/mean"] < -5
    alone = tmp_path / "alone"
    trainer(alone).train()
    first, second = (ledger.read(directory.RunPaths(root).ledger).records for root in (tmp_path, alone))
    assert first == second


def test_every_prompt_is_drawn_once_an_epoch_in_an_order_of_its_own(tmp_path):
    trainer(tmp_path, runs.toy(tmp_path, generations=4)).train()
    drawn = [record.prompts for record in ledger.read(directory.RunPaths(tmp_path).ledger).records]
    epochs = [drawn[0] + drawn[1], drawn[2] + drawn[3]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 2
    assert epochs[0] != epochs[1]


def test_more_prompts_than_there_are_means_all_of_them(tmp_path):
    trainer(tmp_path, runs.toy(tmp_path, generations=2, prompts_per_generation=100)).train()
    assert all(len(record.prompts) == 6 for record in ledger.read(directory.RunPaths(tmp_path).ledger).records)


def test_without_held_out_data_training_returns_nothing(tmp_path):
    assert trainer(tmp_path, eval_dataset=None).train() == {}


# --------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train_dataset": []}, DataError, "the training data of task 'custom' is empty"),
        ({"train_dataset": [{"text": "x"}]}, DataError, "row 0 of the train data has no 'prompt'"),
        ({"reward_funcs": []}, ConfigError, "reward_funcs is empty"),
        ({"reward_funcs": None}, ConfigError, "give both reward_funcs and train_dataset"),
        ({"train_dataset": None}, ConfigError, "give both reward_funcs and train_dataset"),
        ({"reward_weights": [1, 2]}, ConfigError, "1 reward functions but 2 reward_weights"),
        ({"reward_funcs": None, "train_dataset": None}, ConfigError, "reward_weights and eval_dataset need"),
    ],
    ids=str,
)
def test_a_mistake_in_data_or_rewards_is_told_before_anything_is_written(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        trainer(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def raising(completions, **_):
    raise ZeroDivisionError("division by zero")


def too_few(completions, **_):
    return []


def text(completions, **_):
    return completions


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, "the reward function 'raising' raised ZeroDivisionError: division by zero"),
        (too_few, "the reward function 'too_few' returned 0 values for 1 completions"),
        (text, r"the reward function 'text' returned '.*', which is text"),
    ],
)
def test_a_broken_reward_is_named_and_the_run_goes_on_once_it_is_fixed(tmp_path, function, message):
    with pytest.raises(RewardError, match=message):
        trainer(tmp_path / "run", reward_funcs=function).train()
    trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    trainer(tmp_path / "straight").train()
    runs.assert_same_run(tmp_path / "run", tmp_path / "straight")


def test_members_that_cannot_be_scored_raise_an_alarm_move_nothing_and_stop_the_run(tmp_path):
    def judge(completions, **columns):
        if down and next(calls) % 3 == 2:
            raise OSError("no answer")
        return [None] * len(completions) if down else closeness(completions, **columns)

    one, down, calls = trainer(tmp_path, reward_funcs=judge), True, itertools.count()
    before = one.evaluate()
    assert before["eval_reward"] is None
    fingerprint = one.engine.fingerprint()
    for resume in (False, True):
        with pytest.raises(
            RewardError, match=r"no completion had a score in 3 generations in a row \(rewards: judge\)"
        ):
            one.train(resume_from_checkpoint=resume)
        assert (one.generation, one.engine.fingerprint()) == (2, fingerprint)
    metrics = [row for row in runs.rows(directory.RunPaths(tmp_path).metrics) if "reward" in row]
    assert all("no member could be scored" in row["alarms"][0] for row in metrics)
    down = False
    one.train(resume_from_checkpoint=True)
    assert one.engine.fingerprint() != fingerprint


def test_generations_in_which_rewards_only_decline_move_nothing_and_stop_nothing(tmp_path):
    def declines(completions):
        return [None] * len(completions)

    one = trainer(tmp_path, reward_funcs=declines)
    before = one.load().fingerprint()
    one.train()
    assert one.generation >= 3
    assert one.engine.fingerprint() == before


def test_the_package_gives_its_public_names():
    assert all(getattr(seedtune, name) is not None for name in seedtune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trianer'"):
        _ = seedtune.Trianer


def test_a_resume_with_other_training_data_is_refused(tmp_path):
    trainer(tmp_path / "run").train()
    with pytest.raises(RunError, match="other training data"):
        trainer(tmp_path / "run", train_dataset=[*DATA[:-1], {"prompt": "word 5", "target": 9.0}]).train(
            resume_from_checkpoint=True
        )


def test_a_base_model_may_move_but_not_change(tmp_path):
    trainer(tmp_path / "run").train()
    with pytest.raises(seedtune.SeedtuneError, match="Give the same base model"):
        trainer(tmp_path / "run", model="another").train(resume_from_checkpoint=True)
