"""Data and rewards as a user has them, for tests of whole runs."""

from __future__ import annotations

from pathlib import Path

import yaml

import runs
from seedtune.config.config import Config
from seedtune.run import directory

REWARDS = '''
"""Rewards of a user."""

def closeness(completions, target, **_):
    return [-abs(float(text) - float(goal)) for text, goal in zip(completions, target)]

def brevity(completions):
    return [-float(len(text)) for text in completions]

def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return -abs(float(solution_str) - float(ground_truth))

def near(output, target):
    return -abs(float(output) - float(target))
'''
SETS = (
    "engine=toy", "population=16", "sigma=0.05", "alpha=0.2", "prompts_per_generation=6", "toy.size=4",
    "save_steps=2", "output_dir=run",
)  # fmt: skip
EXAMPLES = Path(__file__).parents[1] / "examples"


def rows(count: int = 20) -> list[dict]:
    return [{"prompt": f"word {index}", "target": 0.5 + index / 100} for index in range(count)]


def sets(*more: str) -> list[str]:
    return [part for item in (*SETS, *more) for part in ("--set", item)]


def toy(root: Path | str, **settings) -> Config:
    given = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in SETS) if "." not in key}
    return Config.create({**given, "toy": {"size": 4}, "generations": 3, **settings, "output_dir": str(root)})


def metrics(root: Path) -> list[dict]:
    return [row for row in runs.rows(directory.RunPaths(root).metrics) if "reward" in row]


OWN = {"model": "toy", "train_dataset": "data.jsonl", "reward_funcs": "rewards.py:closeness"}
ONE = ("train", "--model", "toy", "--train-dataset", "data.jsonl", "--reward", "rewards.py:closeness")
