"""Every sort of run by Ray workers that are of this process: the ledger of one, few bytes, late members."""

from __future__ import annotations

import pytest

import runs
from ray_workers import alone, count_readings, inline, ray_config
from seedtune.config import fields
from seedtune.run import directory, ledger, recorded_config
from seedtune.run.artifacts.export import export_run
from seedtune.run.artifacts.verify import verify_run
from seedtune.trainer import ESTrainer

SORTS = {
    "gaussian, weights of the model's own type": {
        "perturbation": "gaussian",
        "weights_dtype": "model",
        "dtype": "bfloat16",
    },
    "flipout": {"perturbation": "flipout", "shared_noise": 2},
    "subspaces and decay": {"subspaces": 2, "anchor_l2": 1.0, "anchor_l1": 0.001, "alpha": 0.05},
    "look-ahead": {"lookahead": {"radius": 0.01}, "alpha": 0.05},
    "look-ahead of a length": {"lookahead": {"radius": 0.05, "probes": 4}, "alpha": 0.05},
    "noise that is used again": {"noise_reuse": 3},
    "samples": {"temperature": 0.7, "samples_per_prompt": 2, "objective": "pass_at_k"},
    "a divergence": {"kl_steps": 2, "fingerprint_steps": 2},
    "reference answers": {
        "task": "conciseness",
        "objective": "logprob",
        "prompts_per_generation": 2,
        "eval_prompts": 5,
    },
    "conversations": {"task": "number_guessing", "prompts_per_generation": 2, "eval_prompts": 3, "generations": 3},
    "held-out prompts in several jobs": {"eval_steps": 2},
}


@pytest.mark.parametrize("settings", SORTS.values(), ids=SORTS)
def test_every_sort_of_run_has_the_ledger_of_one_process(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(fields, "HELD_OUT_GROUP", 3)
    config = ray_config(tmp_path / "ray", **{"generations": 6, **settings})
    ESTrainer(args=alone(config, tmp_path / "alone")).train()
    with inline(seed=3):
        ESTrainer(args=config).train()
    runs.assert_same_run(tmp_path / "ray", tmp_path / "alone")
    assert verify_run(tmp_path / "ray").generations == config.generations


def test_a_run_that_goes_back_after_a_fall_has_the_ledger_of_one_process(tmp_path):
    settings = {
        "generations": 30,
        "alpha": 3.0,
        "rollback_on_fall": "yes",
        "population": 80,
        "prompts_per_generation": 8,
    }
    config = ray_config(tmp_path / "ray", **settings)
    ESTrainer(args=alone(config, tmp_path / "alone")).train()
    records = ledger.read(directory.RunPaths(tmp_path / "alone").ledger).records
    assert any(record.rollback_to is not None for record in records), "nothing fell"
    with inline():
        ESTrainer(args=config).train()
    runs.assert_same_run(tmp_path / "ray", tmp_path / "alone")


def test_a_run_of_ray_workers_is_exported_and_resumed_by_one_process(tmp_path):
    config = ray_config(tmp_path / "run")
    with inline():
        ESTrainer(args=config.replace(generations=5)).train()
    ESTrainer(args=recorded_config.run_config(tmp_path / "run").replace(engine="toy", generations=8)).train(
        resume_from_checkpoint=True
    )
    export_run(tmp_path / "run", tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert verify_run(tmp_path / "run").generations == 8


# --------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_member_costs_few_bytes_whatever_the_size_of_the_model(tmp_path, monkeypatch, workers):
    count_readings(monkeypatch)  # else a job that another process delays is sent twice
    found = {}
    for size in (6, 96):
        settings = {"population": 32, "members_per_job": 0, "prompts_per_generation": 8, "generations": 12}
        more = {"toy": {"size": size}, "fingerprint_steps": 10, "save_steps": 10, "ray": {"workers": workers}}
        root = tmp_path / str(size)
        with inline():
            ESTrainer(args=ray_config(root, **settings, **more)).train()
        rows = [row for row in runs.rows(directory.RunPaths(root).metrics) if "ray/workers" in row]
        found[size] = [row["ray/bytes_per_member"] for row in rows]
        assert all(row["ray/bytes_sent"] + row["ray/bytes_received"] > 33 for row in rows)
    assert max(abs(one - two) for one, two in zip(*found.values(), strict=True)) < 1.0
    assert sum(found[6]) / len(found[6]) < (36 if workers < 4 else 48)


# -------------------------------------------------------------------------------------------------- lateness


def slow_first(worker, request, calls):
    """Nothing goes wrong; with `inline` replies come in a random order, so that members are late by chance."""


@pytest.mark.parametrize("max_staleness", [1, 3])
def test_an_update_takes_late_members_and_the_ledger_still_verifies(tmp_path, max_staleness):
    root = tmp_path / "run"
    settings = {"alpha": 0.1, "generations": 20, "population": 32, "members_per_job": 2}
    with inline(seed=5, fault=slow_first):
        ESTrainer(args=ray_config(root, **settings, ray={"workers": 5, "max_staleness": max_staleness})).train()
    rows = [row for row in runs.rows(directory.RunPaths(root).metrics) if "staleness/mean" in row]
    records = ledger.read(directory.RunPaths(root).ledger).records
    ages = [record.plan.generation - member.generation for record in records for member in record.plan.members]
    assert len(rows) == 20
    assert 0 < max(ages) <= max_staleness
    assert max(row["staleness/max"] for row in rows) == max(ages)
    assert verify_run(root).generations == 20


def test_a_late_run_goes_on_after_a_stop_and_verifies(tmp_path):
    root = tmp_path / "run"
    settings = {"alpha": 0.1, "generations": 10, "population": 32, "members_per_job": 2}
    config = ray_config(root, **settings, ray={"workers": 5, "max_staleness": 2})
    with inline(seed=2):
        ESTrainer(args=config).train()
        ESTrainer(args=recorded_config.run_config(root).replace(generations=16)).train(resume_from_checkpoint=True)
    assert verify_run(root).generations == 16


def test_late_members_and_steps_that_the_run_finds_go_together(tmp_path):
    root = tmp_path / "run"
    settings = {"sigma": None, "alpha": None, "generations": 8, "population": 32, "members_per_job": 2}
    with inline(seed=5, fault=slow_first):
        ESTrainer(args=ray_config(root, **settings, ray={"workers": 5, "max_staleness": 2})).train()
    contents = ledger.read(directory.RunPaths(root).ledger)
    assert contents.header.measured
    assert all(record.rollback_to is None and not record.watched for record in contents.records)
    assert verify_run(root).generations == 8
