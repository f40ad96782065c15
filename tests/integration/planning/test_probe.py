"""A probe before training: comparable, cheap, without traces, and honest about collapse."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import models
import runs
import seedtune
from seedtune import tasks
from seedtune.engines.toy.engine import ToyEngine
from seedtune.errors import ConfigError
from seedtune.planning import probe
from seedtune.planning.probe import CompletionStats, collapse_of, probe_config, recommend
from seedtune.rewards.base import Reward, text_of
from seedtune.rollouts.prepare import prepare
from seedtune.strategies.quadratic_model import Response, Stride
from seedtune.tasks.base import Task
from seedtune.tasks.from_config import TaskInputs
from seedtune.types import Example

USUAL = CompletionStats(clipped=0.5, empty=0.1, repeating=0.1, unchanged=1.0)
CALM = Response(0.1, 16, 5.0, 1.0, 5.2, 0.3, 2.0, 0.4, 0.5, 0.2, 0.1, 0.9)


@pytest.fixture
def config(tmp_path):
    return runs.toy(tmp_path / "run", population=32, prompts_per_generation=8, toy={"size": 16})


@pytest.fixture
def jobs(monkeypatch):
    """Every job a toy engine is given."""
    seen = []
    evaluate = ToyEngine.evaluate

    def record(self, jobs):
        seen.extend(jobs := list(jobs))
        return evaluate(self, jobs)

    monkeypatch.setattr(ToyEngine, "evaluate", record)
    return seen


def test_a_probe_takes_no_more_than_a_twentieth_of_a_sweep_and_writes_nothing(config, tmp_path):
    found = probe_config(config)
    assert found.sweep_rollouts == 5 * 10 * 32 * 8
    assert 0 < found.rollouts <= found.sweep_rollouts / 20
    assert list(tmp_path.iterdir()) == []


def test_every_sigma_sees_the_same_members_and_prompts_and_none_of_trainings_noise(config, jobs):
    found = probe_config(config, sigmas=[0.1, 0.05], members=8)
    assert [level.sigma for level in found.levels] == [0.05, 0.1]
    unperturbed, first, second = jobs
    assert len(unperturbed.members) == 1
    assert first.members == second.members
    assert len(first.members) == 8
    assert unperturbed.prompts[:8] == first.prompts == second.prompts
    assert len(unperturbed.prompts) == 16
    assert {member.generation for member in first.members} == {2**31}


def test_no_member_answers_twice_at_a_sigma(config, jobs):
    found = probe_config(config)
    answered = [(job.sigma, member) for job in jobs for member in job.members]
    assert len(set(answered)) == len(answered)
    assert found.rollouts == sum(len(job.members) * len(job.prompts) for job in jobs)


def test_two_probes_agree(config):
    first, second = (replace(probe_config(config), seconds=0.0) for _ in range(2))
    assert first == second


def test_a_prepared_run_is_probed_with_its_own_rewards_and_data(config, monkeypatch):
    def nearness(completions, target, **_):
        return [-abs(float(text) - goal) for text, goal in zip(completions, target, strict=True)]

    rows = [{"prompt": f"number {index}", "target": 0.1 * index} for index in range(8)]
    run = prepare(config, TaskInputs(nearness, train=rows))
    monkeypatch.delattr(probe, "prepare")
    found = probe.probe(run, sigmas=[0.05], members=4, prompts=8)
    assert found.rollouts == 8 + 4 * 8
    assert -2.0 < found.unperturbed < 0.0


@pytest.mark.parametrize("start", [0.02, 0.1, 0.3, 1.7])
def test_wherever_the_search_begins_it_ends_at_the_edge_of_collapse(config, monkeypatch, start):
    monkeypatch.setattr(probe, "collapse_of", lambda r, a, u: "loops" if r.sigma > 0.2 else None)
    found = probe_config(config.replace(sigma=start))
    usable = [level for level in found.levels if level.collapse is None]
    assert 0.1 < usable[-1].sigma <= 0.2
    assert usable[-1].response.members == 16
    assert found.sigma in [level.sigma for level in usable]


@pytest.mark.parametrize(
    ("response", "answers", "reason"),
    [
        (CALM, USUAL, None),
        (CALM, replace(USUAL, repeating=0.35), "35% of the answers repeat themselves (the unperturbed model: 10%)"),
        (CALM, replace(USUAL, empty=0.9), "90% of the answers are empty (the unperturbed model: 10%)"),
        (replace(CALM, mean=3.5), USUAL, None),
        (replace(CALM, mean=2.5), USUAL, "the mean reward fell from 5.2 to 2.5, ± 1"),
        (replace(CALM, mean=2.5, gap_error=2.0), USUAL, None),
        (replace(CALM, mean=0.0, spread=0.0, gap_error=0.0), USUAL, "the mean reward fell from 5.2 to 0, ± 0"),
    ],
)
def test_collapse_is_seen_in_answers_and_in_rewards(response, answers, reason):
    assert collapse_of(response, answers, USUAL) == reason


def level(sigma: float, gain: float | None, collapse: str | None = None) -> probe.Level:
    stride = None if gain is None else Stride(3.0, gain, 0.5, capped=True)
    return probe.Level(replace(CALM, sigma=sigma), USUAL, (Example(0, "p", {}), "a"), collapse, stride)


def test_of_nearly_equal_gains_the_smaller_sigma_is_advised(config):
    sigma, alpha, reason = recommend([level(0.1, 1.0), level(0.2, 1.9), level(0.4, 2.0)], config)
    assert (sigma, alpha) == (0.2, pytest.approx(0.6))
    assert "a larger σ is not worth more" in reason


def test_a_collapsed_sigma_is_never_advised_and_named_as_the_limit(config):
    sigma, _, reason = recommend([level(0.1, 1.0), level(0.2, None, "nonsense")], config)
    assert sigma == 0.1
    assert "at σ 0.2 the model has collapsed: nonsense" in reason
    assert recommend([level(0.2, None, "nonsense")], config)[:2] == (None, None)


def test_where_all_members_tie_the_step_is_the_cautious_one(config):
    sigma, alpha, reason = recommend([level(0.1, 0.0), level(0.2, 0.0)], config)
    assert (sigma, alpha) == (0.2, 0.1)
    assert reason.startswith("all members have the same reward at every usable σ")


def test_a_search_that_begins_in_collapse_goes_down(config, monkeypatch):
    real = collapse_of
    monkeypatch.setattr(probe, "collapse_of", lambda r, a, u: "loops" if r.sigma > 0.03 else real(r, a, u))
    found = probe_config(config.replace(sigma=0.2))
    assert found.sigma is not None
    assert found.sigma <= 0.03
    assert [found.collapse for found in found.levels if found.sigma > 0.03] == ["loops"] * 3


def test_a_sigma_at_which_nothing_can_be_scored_has_collapsed(config):
    def in_range(completions, **_):
        numbers = [float(text_of(completion)) for completion in completions]
        return [number if abs(number) < 30 else None for number in numbers]

    task = replace(tasks.create("toy"), rewards=(Reward("in_range", in_range),))
    found = probe_config(config, task=task, sigmas=[0.05, 1000.0])
    fine, lost = found.levels
    assert fine.collapse is None
    assert lost.collapse is not None
    assert lost.collapse.startswith("no pair of members could be scored")
    assert found.sigma == 0.05


def test_alpha_is_advised_in_the_unit_it_has(config):
    assert probe_config(config).alpha is not None
    found = probe_config(config.replace(shaping="centered_rank"))
    assert (found.sigma is None, found.alpha) == (False, None)
    assert "leave alpha out" in found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 5}, "members=5: a probe takes pairs, at least two"),
        ({"members": 2}, "members=2"),
        ({"prompts": 0}, "prompts=0: a probe needs from one"),
        ({"sigmas": [0.1, -1.0]}, "sigma=-1.0: must be greater than 0"),
        ({"sigmas": [math.nan]}, "sigma=nan: must be a finite number"),
    ],
)
def test_a_probe_that_cannot_be_is_refused_before_anything_is_loaded(config, options, message):
    with pytest.raises(ConfigError, match=message):
        probe_config(config.replace(engine="transformers", model="/nowhere"), **options)


def test_a_language_model_is_probed_with_rewards_of_ones_own(tmp_path):
    folder = models.save_family("llama", tmp_path / "model")
    config = seedtune.ESConfig(
        model=str(folder), output_dir=str(tmp_path / "run"), sigma=0.02, population=8, max_completion_length=16,
        prompts_per_generation=4, transformers={"device": "cpu"},
    )  # fmt: skip
    train = tuple(Example(i, text, {}) for i, text in enumerate(("one", "two and", "three", "four", "five")))
    reward = Reward("vowels", lambda completions: [float(sum(c in "aeiou" for c in text)) for text in completions])
    found = probe_config(config, task=Task("own", train, (), (reward,)), members=4, sigmas=[0.01, 0.05])
    assert [level.response.members for level in found.levels] == [4, 4]
    assert found.rollouts == 5 + 2 * 4 * 4
    assert found.sigma in (0.01, 0.05, None)


def test_the_command_shows_table_samples_and_what_to_run(command, config, tmp_path):
    path = runs.write_config(config, tmp_path / "config.yaml")
    code, output, errors = command("probe", path)
    assert (code, errors) == (0, "")
    assert "recommended: σ" in output
    assert f"use it with: seedtune train {path} --set sigma=" in output
    assert "of a sweep of 5 σ × 10 generations (12,800)" in output
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_command_names_a_sigma_that_is_no_number(failure, config, tmp_path):
    path = runs.write_config(config, tmp_path / "config.yaml")
    assert failure("probe", path, "--sigmas", "0.1,large").startswith("--sigmas: 'large' is not a number.")
