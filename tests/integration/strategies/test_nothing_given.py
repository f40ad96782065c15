"""Runs to which neither σ nor α is given, with rewards that say nothing: no drift but chance, and nothing unsaid."""

from __future__ import annotations

import math

import numpy as np
import pytest

import runs
from seedtune import verify_run
from seedtune.run import directory, ledger
from seedtune.strategies.step_size import GAIN, LEAST_AGREEMENT, LEAST_COST, LONGEST
from seedtune.trainer import ESTrainer

ROWS = [{"prompt": f"number {index}", "answer": 0.1 * index} for index in range(12)]
NOTHING = {"sigma": None, "alpha": None, "eval_steps": 0, "reward_batch": "all"}


def drawn(completions, trainer_state, **_):
    """Rewards that have nothing to do with the answers."""
    return np.random.default_rng(trainer_state.global_step).normal(size=len(completions)).tolist()


def train(root, reward, rows=ROWS, **settings) -> ESTrainer:
    config = runs.toy(root, **{**NOTHING, "population": 16, "prompts_per_generation": 4, "generations": 24, **settings})
    run = ESTrainer(args=config, reward_funcs=reward, train_dataset=rows, eval_dataset=ROWS)
    run.train()
    return run


def generations(root) -> list[dict]:
    return [row for row in runs.rows(directory.RunPaths(root).metrics) if "reward" in row]


def records(root) -> list[ledger.Record]:
    return ledger.read(directory.RunPaths(root).ledger).records


def test_random_rewards_make_a_random_walk_of_short_steps(tmp_path):
    train(tmp_path / "run", drawn, toy={"size": 48}, fingerprint_steps=24, rollback_on_fall="no")
    rows = generations(tmp_path / "run")
    ratios = [row["step_ratio"] for row in rows]
    assert all(0.0 < ratio <= LONGEST for ratio in ratios)
    shortest = GAIN * math.sqrt(8) * LEAST_AGREEMENT / LEAST_COST
    assert np.mean(ratios[8:]) < 1.5 * shortest  # evidence has taken the place of what is expected of a run
    assert rows[-1]["drift"] == pytest.approx(rows[-1]["drift_predicted"], rel=0.1)
    walked = math.sqrt(math.fsum(ratio * ratio for ratio in ratios))
    expected = walked * records(tmp_path / "run")[0].plan.sigma * math.sqrt(2 * 48 * 48)
    assert rows[-1]["drift"] == pytest.approx(expected, rel=0.1)


def test_constant_rewards_move_nothing_and_every_generation_says_so(tmp_path):
    train(tmp_path / "run", lambda completions, **_: [1.0] * len(completions), generations=6)
    rows = generations(tmp_path / "run")
    assert [row["alpha"] for row in rows] == [0.0] * 6
    assert all("all members have the same reward" in row["alarms"][0] for row in rows)
    prints = ledger.read(directory.RunPaths(tmp_path / "run").ledger).fingerprints
    assert len(set(prints.values())) == 1


def test_a_judge_that_scores_nothing_for_ten_generations_changes_nothing_meanwhile(tmp_path):
    def judge(completions, answer, trainer_state, **_):
        if 4 <= trainer_state.global_step < 14:
            return [None] * len(completions)
        return [-abs(float(text) - number) for text, number in zip(completions, answer, strict=True)]

    train(tmp_path / "run", judge)
    made, rows = records(tmp_path / "run"), generations(tmp_path / "run")
    assert [record.alpha > 0.0 for record in made] == [True] * 4 + [False] * 10 + [True] * 10
    assert all("no member could be scored" in row["alarms"][0] for row in rows[4:14])
    assert {str(record.state["step_size"]) for record in made[3:14]} == {str(made[3].state["step_size"])}
    verify_run(tmp_path / "run")


@pytest.mark.parametrize(
    "settings", [{"population": 2}, {"rows": ROWS[:1]}, {"population": 2, "rows": ROWS[:1]}], ids=["two", "one", "both"]
)
def test_two_members_or_one_prompt_are_enough(tmp_path, settings):
    def closeness(completions, answer, **_):
        return [-abs(float(text) - number) for text, number in zip(completions, answer, strict=True)]

    train(tmp_path / "run", closeness, **settings)
    ratios = [row["step_ratio"] for row in generations(tmp_path / "run")]
    assert all(ratio == 0.0 or ratio <= LONGEST for ratio in ratios)
    assert any(ratio > 0.0 for ratio in ratios)
    chosen = ledger.read(directory.RunPaths(tmp_path / "run").ledger).chosen
    evaluated = {
        row["generation"]: row["eval_reward"]
        for row in runs.rows(directory.RunPaths(tmp_path / "run").metrics)
        if "eval_reward" in row
    }
    assert chosen == 0 or evaluated[chosen] == max(evaluated.values()) > evaluated[0]
    verify_run(tmp_path / "run")
