"""A reward that changes with the generation: killed and resumed, verified, exported and evaluated."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import runs
from own_data import rows, toy
from seedtune import EvalConfig, evaluate
from seedtune.config.config import Config
from seedtune.run import directory, ledger
from seedtune.trainer import ESTrainer

REWARD = """
def staged(completions, target, trainer_state, log_metric):
    # until generation 3 an answer may be far off, then it must be close
    width = 4.0 if trainer_state.global_step < 3 else 0.5
    log_metric("width", width)
    return [max(0.0, 1 - abs(float(text) - goal) / width) for text, goal in zip(completions, target)]

def wide(completions, target):
    return [max(0.0, 1 - abs(float(text) - goal) / 4.0) for text, goal in zip(completions, target)]
"""
KILLED = """
import os, signal
from seedtune.trainer import ESTrainer

record = ESTrainer._record

def killed(self, *arguments):
    if self.generation == {}:
        os.kill(os.getpid(), signal.SIGKILL)
    return record(self, *arguments)

ESTrainer._record = killed
"""
SETTINGS = {"generations": 6, "eval_steps": 2, "eval_size": 0.25, "save_steps": 2, "model": "toy"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder with the data, the reward, and a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("curriculum")
    (folder / "rewards.py").write_text(REWARD)
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    ESTrainer(args=config(folder, "whole")).train()
    return folder


def config(folder: Path, name: str, reward: str = "staged") -> Config:
    own = {"train_dataset": str(folder / "data.jsonl"), "reward_funcs": f"{folder / 'rewards.py'}:{reward}"}
    return toy(folder / name, **SETTINGS, **own)


def rewards(root: Path) -> list[tuple[float, ...]]:
    return [record.rewards for record in ledger.read(directory.RunPaths(root).ledger).records]


def test_rewards_change_at_the_stage_and_the_ledger_has_them(folder):
    ESTrainer(args=config(folder, "never", "wide")).train()
    staged, wide = rewards(folder / "whole"), rewards(folder / "never")
    assert staged[:3] == wide[:3]
    assert max(staged[3]) < min(wide[3])


@pytest.mark.parametrize(("generation", "workers"), [(2, 1), (3, 0), (4, 1)])
def test_killed_in_any_stage_a_run_resumes_to_the_bytes_of_one_that_never_stopped(folder, command, generation, workers):
    root = folder / f"killed {generation} {workers}"
    file = runs.write_config(config(folder, root.name).replace(reward_workers=workers), folder / f"{root.name}.yaml")
    died = runs.cli("train", file, code=KILLED.format(generation))
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(rewards(root)) == generation
    code, _, errors = command("resume", root)
    assert code == 0, errors
    runs.assert_same_run(root, folder / "whole")


def test_a_run_of_stages_is_verified_and_says_which_stage_each_evaluation_had(folder, command):
    metrics = runs.rows(directory.RunPaths(folder / "whole").metrics)
    assert [row["rewards/staged/width"] for row in metrics if "reward" in row] == [4.0, 4.0, 4.0, 0.5, 0.5, 0.5]
    held_out = {row["generation"]: row["eval_rewards/staged/width"] for row in metrics if "eval_reward" in row}
    assert held_out == {0: 4.0, 2: 4.0, 4: 0.5, 6: 0.5}
    assert command("verify", folder / "whole")[0] == 0


def test_every_model_of_a_run_is_evaluated_with_the_last_stage(folder):
    found = evaluate(folder / "whole", eval_config=EvalConfig(baseline=0)).subjects
    metrics = [row for row in runs.rows(directory.RunPaths(folder / "whole").metrics) if "eval_reward" in row]
    assert found[0].results[0].estimates["reward"].value == pytest.approx(metrics[-1]["eval_reward"])
    first = evaluate(folder / "whole", generation=0).subjects[0].results[0].estimates["reward"].value
    assert first == found[1].results[0].estimates["reward"].value
    assert first < metrics[0]["eval_reward"]
