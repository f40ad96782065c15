"""A probe before training: comparable rows, without traces, and the σ that a run would take."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import runs
from seedtune.cli.app import app
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import ConfigError, RewardError
from seedtune.planning.probe import FACTORS, probe_config
from seedtune.rewards.base import Reward
from seedtune.run import directory, ledger
from seedtune.tasks.base import Task
from seedtune.trainer import ESTrainer
from seedtune.types import Example


@pytest.fixture
def config(tmp_path):
    return runs.toy(tmp_path / "run", sigma=None, population=8, prompts_per_generation=8)


@pytest.fixture
def jobs(monkeypatch):
    """Every job that a toy engine is given to answer."""
    seen, evaluate = [], ToyEngine.evaluate

    def record(self, jobs):
        seen.extend(jobs := list(jobs))
        return evaluate(self, jobs)

    monkeypatch.setattr(ToyEngine, "evaluate", record)
    return seen


def test_it_finds_the_sigma_that_a_run_takes_and_writes_nothing(config, tmp_path):
    found = probe_config(config)
    assert list(tmp_path.iterdir()) == []
    ESTrainer(args=config).train()
    header = ledger.read(directory.RunPaths(tmp_path / "run").ledger).header
    assert (found.sigma, found.measured) == (header.config["sigma"], header.measured)


def test_by_default_it_shows_sigmas_around_the_found_one(config):
    found = probe_config(config)
    assert [level.sigma for level in found.levels] == [float(f"{f * found.sigma:.2g}") for f in FACTORS]
    losses = [level.loss for level in found.levels]
    assert losses == sorted(losses)
    assert all(level.answers.unchanged < 1.0 for level in found.levels)


def test_every_sigma_sees_the_same_members_and_prompts_and_none_of_trainings_noise(config, jobs):
    found = probe_config(config, sigmas=[0.1, 0.05], members=6, prompts=5)
    assert [level.sigma for level in found.levels] == [0.05, 0.1]
    _, unperturbed, _, first, second = jobs
    assert first.members == second.members
    assert len(first.members) == 6
    assert unperturbed.prompts == first.prompts == second.prompts
    assert len(first.prompts) == found.prompts == 5
    assert {member.generation for member in first.members} == {2**31}
    assert found.rollouts == (2 * 6 + 1) * 5


def test_rewards_are_those_of_the_members(config):
    found = probe_config(config, sigmas=[1e-9, 0.2], members=8)
    still, moved = found.levels
    assert (still.spread, still.gap, still.best_gain) == pytest.approx((0.0, 0.0, 0.0), abs=1e-6)
    assert still.mean == pytest.approx(found.unperturbed)
    assert moved.gap == pytest.approx(found.unperturbed - moved.mean)
    assert moved.best_gain >= -moved.gap
    assert 0.0 <= moved.success_rate <= 1.0


def test_two_probes_agree(config):
    first, second = (replace(probe_config(config), seconds=0.0) for _ in range(2))
    assert first == second


def task_of(reward) -> Task:
    rows = tuple(Example(number, f"row {number}", {}) for number in range(4))
    return Task("rows", rows, (), (Reward("mine", reward),))


def test_scores_that_are_missing_do_not_count(config):
    def some(prompts, completions, **_):
        pairs = zip(prompts, completions, strict=True)
        return [None if prompt == "row 0" else float("5" in text) for prompt, text in pairs]

    found = probe_config(config, task=task_of(some))
    assert all(math.isfinite(level.mean) for level in found.levels)


def test_a_reward_that_scores_nothing_is_an_error(config):
    with pytest.raises(RewardError, match="could not be scored on any prompt"):
        probe_config(config, task=task_of(lambda completions, **_: [None] * len(completions)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 3}, "members=3: a probe takes pairs"),
        ({"members": 2}, "at least two"),
        ({"prompts": 0}, "prompts=0"),
        ({"sigmas": [-1.0]}, "sigma=-1"),
    ],
)
def test_bad_values_are_named_with_the_fix(config, settings, message):
    with pytest.raises(ConfigError, match=message):
        probe_config(config, **settings)


def test_the_command_shows_a_table_and_the_sigma_of_a_run(config, tmp_path):
    path = runs.write_config(config, tmp_path / "toy.yaml")
    shown = CliRunner().invoke(app, ["probe", str(path), "--members", "4"])
    assert shown.exit_code == 0, shown.output
    found = probe_config(config, members=4)
    assert f"a run without sigma takes σ {found.sigma:g}" in shown.output
    data = json.loads(CliRunner().invoke(app, ["probe", str(path), "--members", "4", "--json"]).stdout)
    assert data["sigma"] == found.sigma
    assert [level["sigma"] for level in data["levels"]] == [level.sigma for level in found.levels]
