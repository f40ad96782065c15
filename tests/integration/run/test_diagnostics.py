"""Diagnostics of a run: predictions against what was measured, and alarms that say what to change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import runs
from seedtune.run import directory
from seedtune.run.diagnostics import predicted_drift
from seedtune.strategies.step_size import LONGEST
from seedtune.trainer import ESTrainer
from seedtune.types import Decay, Term, Update

ROWS = [{"prompt": f"number {index}"} for index in range(8)]


def random_reward(completions, **_):
    draw = np.random.default_rng(len(completions) + sum(map(ord, completions[0])))
    return draw.normal(size=len(completions)).tolist()


def metrics(root: Path) -> list[dict]:
    return [row for row in runs.rows(directory.RunPaths(root).metrics) if "reward" in row]


def train(root: Path, **settings) -> list[dict]:
    more = {"generations": 20, "eval_steps": 0, "save_steps": 0, "fingerprint_steps": 5, "toy": {"size": 64}}
    fast = {"population": 16, "alpha": 0.02, "rollback_on_fall": "no", "reward_batch": "all"}
    config = runs.toy(root, **{**more, **fast, **settings})
    ESTrainer(args=config, reward_funcs=random_reward, train_dataset=ROWS).train()
    return metrics(root)


DECAYS = [{}, {"anchor_l2": 10.0}, {"anchor_l1": 0.05}, {"anchor_l2": 5.0, "anchor_l1": 0.02}]


@pytest.mark.parametrize("settings", DECAYS, ids=str)
@pytest.mark.parametrize("noise", [{"perturbation": "gaussian"}, {"rank": 8}], ids=["gaussian", "lowrank"])
def test_with_random_rewards_the_drift_is_the_predicted_one_within_5_percent(tmp_path, settings, noise):
    rows = [row for row in train(tmp_path / "run", **settings, **noise) if "drift" in row]
    assert [row["generation"] for row in rows] == [5, 10, 15, 20]
    for row in rows:
        assert row["drift"] == pytest.approx(row["drift_predicted"], rel=0.05)


def test_plain_z_scores_drift_as_the_paper_says():
    """α√(T·d/N), arXiv 2605.30148."""
    rng = np.random.default_rng(0)
    updates = []
    for generation in range(50):
        z = rng.normal(size=30)
        z = (z - z.mean()) / z.std()
        updates.append(Update(generation, tuple(Term(generation, i, 0.01 / 30 * float(c)) for i, c in enumerate(z))))
    assert predicted_drift(updates, 10**6) == pytest.approx(0.01 * np.sqrt(50 * 10**6 / 30), rel=1e-6)


def test_reused_noise_adds_up_before_it_is_squared():
    same = [Update(generation, (Term(0, 0, 0.5),)) for generation in range(4)]
    assert predicted_drift(same, 100) == pytest.approx(2.0 * 10)


def test_the_decay_of_one_step_is_that_of_normal_numbers():
    x = np.random.default_rng(0).normal(scale=0.3, size=1_000_000)
    moved = 0.8 * x
    moved = np.sign(moved) * np.maximum(np.abs(moved) - 0.1, 0)
    found = predicted_drift([Update(0, (Term(0, 0, 0.3),), Decay(0.2, 0.1))], x.size)
    assert found == pytest.approx(float(np.linalg.norm(moved)), rel=3e-3)


def test_every_generation_tells_what_its_members_showed(tmp_path):
    rows = train(tmp_path / "run", alpha=None)
    for row in rows:
        assert 0.0 <= row["success_rate"] <= 1.0
        assert row["agreement"] <= 3 / 2  # of three prompts
        assert 0.0 < row["step_ratio"] <= LONGEST + 1e-9
        assert row["curvature"] == pytest.approx(row["reward_unperturbed"] - row["reward"])
        assert row["time/diagnostics"] >= 0.0
    assert rows[0]["update_cosine"] is None
    assert all(abs(row["update_cosine"]) < 0.2 for row in rows[1:])


def test_reused_noise_shows_in_the_cosine_of_updates(tmp_path):
    def number(completions, **_):
        return [float(text) for text in completions]

    config = runs.toy(tmp_path / "run", population=8, noise_reuse=4, generations=4, eval_steps=0, alpha=0.01)
    ESTrainer(args=config, reward_funcs=number, train_dataset=ROWS[:3]).train()
    assert all(row["update_cosine"] > 0.9 for row in metrics(tmp_path / "run")[1:])


def test_the_divergence_from_the_base_model_starts_near_nothing_and_grows(tmp_path):
    rows = train(tmp_path / "run", kl_steps=5, alpha=0.2, generations=10)
    found = [row["kl"] for row in rows if "kl" in row]
    assert len(found) == 2
    assert all(value >= 0.0 for value in found)
    assert found[-1] > 0.0
