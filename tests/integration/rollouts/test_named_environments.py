"""Whole runs with two environments by name: their prompts, rewards and metrics, from a file, killed and resumed."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

from runs import assert_same_run, cli, command, environment, rows, toy, write_config
from seedtune import ESTrainer
from seedtune.config.config import Config
from seedtune.engines.toy.engine import ToyEngine
from seedtune.run import directory
from waiting import wait_until

CODE = '''
class Approach:
    """The toy engine's numbers are to reach a goal in two turns."""

    def reset(self, goal):
        self.goal, self.turns = goal, 0

    def step(self, text):
        self.turns, self.said = self.turns + 1, float(text)
        return None if self.turns == 2 else f"{self.goal - self.said:.2f} more"

    def reward(self):
        return -abs(self.goal - self.said)


class Tally:
    """Counts calls."""

    def reset(self, **columns):
        assert "environment" not in columns
        self.count = 0

    def more(self) -> str:
        """Count."""
        self.count += 1
        return str(self.count)

    def get_reward(self):
        return float(self.count)


class Bell:
    """Rings."""

    def reset(self):
        self.reward = 0.0

    def ring(self) -> str:
        """Ring."""
        self.reward += 2.0
        return "ding"
'''
DATA = [
    {"prompt": f"number {n}", "goal": 0.1 * n, "environment": ("approach", "tally", "bell")[n % 3]} for n in range(9)
]


def from_file(root: Path, folder: Path, **settings) -> Config:
    """A run without Python objects: code and rows are files of ``folder``."""
    code, data = folder / "places.py", folder / "rows.jsonl"
    code.write_text(CODE, encoding="utf-8")
    data.write_text("".join(f"{json.dumps(row)}\n" for row in DATA), encoding="utf-8")
    named = {"approach": f"{code}:Approach", "tally": f"{code}:Tally", "bell": f"{code}:Bell"}
    more = {"task": "custom", "train_dataset": str(data), "eval_dataset": str(data), "environment": named}
    return toy(root, alpha=0.1, **settings).replace(**more)


def test_each_prompt_shows_and_calls_the_tools_of_its_environment(tmp_path, monkeypatch):
    seen, speak = list[tuple[str, str]](), ToyEngine.evaluate

    def evaluate(self, jobs):
        listed = list(jobs)
        prompts = {job.id: job.prompts for job in listed}
        seen.extend((prompt.content, str(prompt.turn)) for found in prompts.values() for prompt in found)
        for rollout in speak(self, listed):
            prompt = prompts[rollout.job][rollout.prompt]
            calls = "more()\nring()" if "approach" not in prompt.content and prompt.turn == 0 else rollout.text
            yield replace(rollout, text=calls)

    monkeypatch.setattr(ToyEngine, "evaluate", evaluate)
    found: dict = {}
    exec(CODE, found)
    named = {"approach": found["Approach"], "tally": found["Tally"], "bell": found["Bell"]}
    data = [{**row, "prompt": f"{row['environment']}:"} for row in DATA]
    run = ESTrainer(
        args=toy(tmp_path / "run", generations=1, prompts_per_generation=9, eval_prompts=9),
        environment_factory=named,
        train_dataset=data,
        eval_dataset=data,
    )
    run.train()
    for content, turn in seen:
        shown = {name for name in ("more()", "ring()") if f"{name}: " in content.partition("\n\n")[0]}
        place = next(name for name in named if f"{name}:" in content)
        assert shown == {"approach": set(), "tally": {"more()"}, "bell": {"ring()"}}[place], (content, turn)
    assert {turn for _, turn in seen} == {"0", "1"}
    row = next(row for row in rows(run.paths.metrics) if "reward" in row)
    assert (row["rewards/Tally/mean"], row["rewards/Bell/mean"]) == (1.0, 2.0)
    assert row["rewards/Approach/mean"] <= 0.0


def test_a_run_from_a_file_that_is_killed_ends_as_one_that_never_stopped(tmp_path):
    reference, root = tmp_path / "reference", tmp_path / "killed"
    done = cli("train", write_config(from_file(reference, tmp_path), tmp_path / "reference.yaml"))
    assert done.returncode == 0, done.stderr
    slow = from_file(root, tmp_path, toy={"size": 4, "delay": 0.2})
    process = subprocess.Popen(
        command("train", write_config(slow, tmp_path / "killed.yaml")),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    ledger = directory.RunPaths(root).ledger
    wait_until(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") >= 3, process=process)
    process.kill()
    process.communicate()
    assert ledger.read_bytes().count(b"\n") < directory.RunPaths(reference).ledger.read_bytes().count(b"\n")
    resumed = cli("resume", root, "--set", "toy.delay=0")
    assert resumed.returncode == 0, resumed.stderr
    assert_same_run(root, reference)
