"""Run folders of any length, written without training: what the report reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seedtune.run.directory import RunPaths

WORDS = ("the", "answer", "is", "seven", "because", "three", "and", "four", "add", "up", "to", "it", "while", "two")


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def made_up_run(folder: Path, *, generations: int = 500, prompts: int = 64, words: int = 40, gain: float = 0.4) -> Path:
    """Write a run with an evaluation every tenth generation, two rewards, drift, KL and some alarms."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, evaluated = RunPaths(folder), range(0, generations + 1, 10)
    rows = [row for g in range(generations + 1) for row in _metrics(g, generations, gain, evaluated)]
    write(paths.metrics, rows)
    answers = [row for g in evaluated for p in range(prompts) for row in [_answer(g, p, generations, words, gain)]]
    write(paths.samples, answers)
    settings = {
        "model": "org/small-1B",
        "task": "countdown",
        "population": 32,
        "sigma": 0.006,
        "generations": generations,
    }
    paths.config.write_text(json.dumps({**settings, "output_dir": str(folder)}), encoding="utf-8")
    header = {"seedtune": "0.1.0", "format": 1, "noise": "v1", "arithmetic": {"device": "cpu"}, "config": settings}
    write(paths.ledger, [header])
    return folder


def _wave(*place: float) -> float:
    return math.sin(12.9898 * sum(part * (i + 1) ** 2 for i, part in enumerate(place, 1)))


def _metrics(g: int, generations: int, gain: float, evaluated: range) -> list[dict[str, Any]]:
    reward = 0.2 + gain * (1 - math.exp(-3 * g / generations))
    rows: list[dict[str, Any]] = []
    if g:
        clipped = 0.95 if g % 50 in (7, 8, 9) else 0.1
        rows.append(
            {
                "generation": g,
                "reward": reward + 0.02 * _wave(g),
                "reward_std": 0.05 + 0.01 * _wave(g, 1),
                "reward_best": reward + 0.12 + 0.02 * _wave(g, 2),
                "reward_unperturbed": reward + 0.01,
                "rewards/right/mean": reward,
                "rewards/brief/mean": 0.4 + 0.1 * _wave(g, 3),
                "rewards/right/step_share": 0.7 + 0.2 * _wave(g, 4),
                "rewards/brief/step_share": 0.3 - 0.2 * _wave(g, 4),
                "completions/mean_length": 180 - 60 * g / generations,
                "completions/clipped_ratio": clipped,
                "frac_reward_zero_std": 0.2,
                "sigma": 0.006,
                "alpha": 0.003 * (1 + 0.5 * _wave(g / 40)),
                "step_ratio": 0.8 + 0.2 * _wave(g, 5),
                "success_rate": 0.45 + 0.1 * _wave(g, 6),
                "agreement": 0.1 + 0.2 * _wave(g / 30),
                "curvature": 0.01,
                "update_cosine": 0.01 * _wave(g, 8) if g > 1 else None,
                "num_tokens": 40_000,
                "step_time": 10.0,
                "time/rollouts": 7.0 + _wave(g),
                "time/perturb": 0.5,
                "time/score": 1.0,
                "time/update": 0.5,
                "time/other": 1.0 - _wave(g),
                "tokens_per_second": 5000 + 300 * _wave(g, 9),
                "alarms": ["over 90 % of completions hit max_completion_length. Raise it."] if clipped > 0.9 else [],
                **({"drift": 0.1 * math.sqrt(g), "drift_predicted": 0.11 * math.sqrt(g)} if g % 10 == 0 else {}),
                **({"kl": 0.2 * g / generations} if g % 25 == 0 else {}),
            }
        )
    if g in evaluated:
        held_out = {
            "eval_reward": reward,
            "eval_accuracy": reward,
            "eval_completions/mean_length": 150.0,
            "eval_time": 4.0,
        }
        rows.append({"generation": g, **held_out})
    return rows


def _answer(g: int, prompt: int, generations: int, words: int, gain: float) -> dict[str, Any]:
    moved = int(words * g / generations * abs(_wave(prompt)))
    text = [WORDS[(prompt + i * (i < moved)) % len(WORDS)] for i in range(words)]
    reward = min(1.0, max(0.0, 0.2 + gain * (1 - math.exp(-3 * g / generations)) + 0.3 * _wave(prompt)))
    return {
        "generation": g,
        "split": "test",
        "prompt_id": prompt,
        "prompt": f"Question {prompt}: which numbers add up to {prompt + 7}?",
        "sample": 0,
        "completion": " ".join(text),
        "reward": reward,
        "right": reward > 0.5,
        "finish": "stop",
    }
