"""Whole runs with an environment: the same results however they are computed, and TRL's way to start them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import load_engine, save_family
from runs import assert_same_run, cli, rows, toy, write_config
from seedtune import ESTrainer
from seedtune.config.config import Config
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import ConfigError
from seedtune.rewards.base import Reward
from seedtune.rollouts.evaluator import Evaluator
from seedtune.run import directory
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import examples
from seedtune.tasks.environments import environment_reward
from seedtune.types import UNPERTURBED, Job, Member, Plan, Rollout

MEMBERS = (Member(1, 0, 1), Member(1, 0, -1), UNPERTURBED, Member(1, 7, 1))
DATA = [{"prompt": f"number {index}", "goal": 0.1 * index - 0.4} for index in range(8)]


class Approach:
    """The toy engine's numbers are to reach a goal in three turns; the state is what was said last."""

    def reset(self, goal: float) -> None:
        self.goal, self.turns, self.said = goal, 0, 0.0

    def step(self, text: str) -> str | None:
        self.turns, self.said = self.turns + 1, float(text)
        return None if self.turns == 3 else f"{self.goal - self.said:.2f} more"

    def reward(self) -> float:
        return -abs(self.goal - self.said)


class Echo:
    """For language models: repeats the last letter, and goes on longer with some."""

    def reset(self) -> str:
        self.heard = ""
        return " you"

    def step(self, text: str) -> str | None:
        self.heard += text
        return f"<{text[-1:]}>" if ord(text[-1:] or "a") % 3 else None

    def reward(self) -> float:
        return float(len(set(self.heard)))


def trainer(root: Path, **settings) -> ESTrainer:
    config = toy(root, **{"alpha": 0.1, **settings})
    return ESTrainer(args=config, environment_factory=Approach, train_dataset=DATA, eval_dataset=DATA[:3])


def near(of: float) -> str:
    """Say how near a number is to one.

    Args:
        of: The number.
    """
    return f"{of - 1.0:.2f}"


class Counting:
    """An environment with a tool of its own."""

    def reset(self) -> None:
        self.count = 0

    def more(self) -> str:
        """Count."""
        self.count += 1
        return str(self.count)

    def reward(self) -> float:
        return float(self.count)


def called(completions, **_) -> list[float]:
    return [float(len(text)) for text in completions]


def test_tools_are_called_alone_and_beside_the_methods_of_an_environment(tmp_path, monkeypatch):
    said = {0: "near(3)\nmore()", 1: "done"}
    speak = ToyEngine.evaluate

    def evaluate(self, jobs):
        turns = {job.id: job.prompts[0].turn for job in jobs}
        return (replace(rollout, text=said.get(turns[rollout.job], "done")) for rollout in speak(self, jobs))

    monkeypatch.setattr(ToyEngine, "evaluate", lambda self, jobs: evaluate(self, [*jobs]))
    config, heard = toy(tmp_path / "run", generations=1), []

    def reward(completions, **_) -> list[float]:
        heard.extend(completions)
        return [0.0] * len(completions)

    alone = ESTrainer(None, reward, config, DATA, DATA[:3], tools=[near])
    alone.train()
    assert "2.00" in heard[0]
    assert "1\n" not in heard[0]
    with pytest.raises(ConfigError, match="this run's environment was a Python object"):
        ESTrainer(None, reward, alone.config, DATA, DATA[:3])
    heard.clear()
    both = ESTrainer(
        None,
        reward,
        config.replace(output_dir=str(tmp_path / "both")),
        DATA,
        DATA[:3],
        tools=[near],
        environment_factory=Counting,
    )
    both.train()
    assert "2.00\n1\n" in heard[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tools": [near, near]}, "the tool <function near at .*> has the name of another"),
        ({"tools": [lambda of: of]}, "is no function with a name. Give tools="),
        ({"tools": near}, "tools is a function, not a list"),
        ({"tools": [near], "environment_factory": Approach}, "'Approach' has 'step', which reads whole messages, so"),
        ({"tools": [near], "reward_funcs": None}, "give both reward_funcs and train_dataset"),
    ],
)
def test_tools_that_could_not_be_called_are_refused(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        ESTrainer(args=toy(tmp_path), **{"reward_funcs": called, "train_dataset": DATA, **given})


@pytest.mark.parametrize(
    ("settings", "seeds"),
    [({"alpha": 0.1, "generations": 30}, 1), ({"alpha": None, "generations": 40, "sigma": 0.1}, 2)],
    ids=["alpha", "auto, mean of two seeds"],
)
def test_es_brings_the_toy_engine_nearer_to_the_goal_of_its_conversations(
    settings: dict[str, Any], seeds: int, tmp_path: Path
) -> None:
    """Fixed or not, the step leaves between 0.55 and 0.7 of the first distance; auto with sigma=0.05 needs longer."""
    only_ends = {"eval_prompts": 0, "eval_steps": 0, "fingerprint_steps": 40, "save_steps": 0}
    kept = []
    for seed in range(seeds):
        config = toy(tmp_path / str(seed), population=16, prompts_per_generation=8, seed=seed, **only_ends, **settings)
        run = ESTrainer(args=config, environment_factory=Approach, train_dataset=DATA, eval_dataset=DATA)
        last = run.train()
        first = next(row for row in rows(run.paths.metrics) if "eval_reward" in row)
        kept.append(last["eval_reward"] / first["eval_reward"])
        assert last["eval_rewards/environment_reward/mean"] == last["eval_reward"]
    assert sum(kept) / seeds < 0.7


def test_groups_arriving_in_any_order_give_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path / "straight", members_per_job=1).train()
    ordered = ToyEngine.evaluate

    def shuffled(self: ToyEngine, jobs: Iterable[Job]) -> Iterator[Rollout]:
        found = list(ordered(self, jobs))
        return iter([found[i] for i in np.random.default_rng(len(found)).permutation(len(found))])

    monkeypatch.setattr(ToyEngine, "evaluate", shuffled)
    trainer(tmp_path / "shuffled", members_per_job=1).train()
    assert_same_run(tmp_path / "straight", tmp_path / "shuffled")


def test_a_run_that_is_resumed_ends_as_one_that_never_stopped(tmp_path: Path) -> None:
    trainer(tmp_path / "whole").train()
    trainer(tmp_path / "parts", generations=2).train()
    trainer(tmp_path / "parts").train(resume_from_checkpoint=True)
    whole, parts = (directory.RunPaths(tmp_path / name).ledger.read_bytes() for name in ("whole", "parts"))
    assert whole.splitlines()[-1].split(b'"check"')[0] == parts.splitlines()[-1].split(b'"check"')[0]


@pytest.mark.parametrize("noise", [{}, {"perturbation": "gaussian"}], ids=["lowrank", "gaussian"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_members_that_talk_in_one_batch_say_what_they_say_alone(noise, temperature, tmp_path: Path) -> None:
    engine = load_engine(save_family("llama", tmp_path), noise=noise)
    data = examples([{"prompt": text} for text in ("Hello", "Hello there", "x")], "train")
    work = Task("echo", data, data, (Reward("own", environment_reward),), environment=Echo)
    settings = {"temperature": temperature, "max_completion_length": 4, "samples_per_prompt": 2 if temperature else 1}

    def played(members: tuple[Member, ...], **more) -> dict[tuple, Rollout]:
        config = Config(**settings, **more, conversation={"max_turns": 4})
        outcome = Evaluator(engine, work, config).evaluate(members, data, plan=Plan(1, 0.05, members))
        return {(r.member, r.prompt, r.sample): replace(r, job=0) for r in outcome.rollouts}

    together = played(MEMBERS)
    assert len({len(rollout.token_ids) for rollout in together.values()}) > 1
    assert played(MEMBERS, members_per_job=1) == together == played(MEMBERS)
    alone = [played((member,)) for member in MEMBERS]
    assert {place: rollout for part in alone for place, rollout in part.items()} == together


def test_a_conversation_stops_where_the_context_ends(tmp_path: Path) -> None:
    class Endless(Echo):
        def step(self, text: str) -> str:
            self.heard += text
            return "and?"

    engine = load_engine(save_family("llama", tmp_path))
    data = examples([{"prompt": "Hello"}], "train")
    work = Task("endless", data, data, (Reward("own", environment_reward),), environment=Endless)
    config = Config(max_completion_length=6, conversation={"max_turns": 50})
    (rollout,) = Evaluator(engine, work, config).unperturbed(data, generation=0).rollouts
    assert rollout.finish == "length"
    assert len("Hello you" + rollout.text) >= engine.tokenizer.context_length
    assert rollout.scores is not None
    assert rollout.scores[0] >= 1.0


def test_a_shipped_environment_trains_from_a_file_without_python(tmp_path: Path) -> None:
    config = toy(tmp_path / "run", generations=1, conversation={"max_turns": 2}).replace(task="number_guessing")
    done = cli("train", write_config(config, tmp_path / "config.yaml"))
    assert done.returncode == 0, done.stderr
    (sample, *_) = rows(directory.RunPaths(tmp_path / "run").samples)
    assert sample["completion"].count("assistant: ") == 2
    assert "user: " in sample["completion"]


def test_an_environment_of_the_configuration_replaces_that_of_the_task(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Once:\n    reward = 0.25\n    def reset(self): pass\n    def step(self, text): return None\n", "utf-8"
    )
    config = toy(tmp_path / "run").replace(task="number_guessing", environment=f"{file}:Once")
    assert ESTrainer(args=config).evaluate()["eval_reward"] == 0.25


def test_limits_of_conversations_without_an_environment_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="conversation has no effect on task 'toy', which has no environment"):
        ESTrainer(args=toy(tmp_path, conversation={"max_turns": 2}))


def test_divergence_of_conversations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="kl_steps=1 measures single answers"):
        trainer(tmp_path, kl_steps=1)
