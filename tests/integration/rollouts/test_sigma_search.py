"""A run without σ: what it measures, that the ledger has it, and that nothing else about the run changes."""

from __future__ import annotations

import pytest

import models
import runs
from ray_workers import alone, inline, ray_config
from seedtune import engines, verify_run
from seedtune.config.config import Config
from seedtune.errors import ConfigError, LedgerError, RunError
from seedtune.rollouts import sigma_search
from seedtune.rollouts.prepare import prepare
from seedtune.run import directory, ledger, recorded_config
from seedtune.strategies.sigma_rule import TARGET, found
from seedtune.tasks.from_config import TaskInputs
from seedtune.trainer import ESTrainer

ROWS = [{"prompt": f"say {word}", "answer": word} for word in ("one", "two", "six", "ten")]


def length(completions, **_):
    return [float(len(text)) for text in completions]


def header(root) -> ledger.Header:
    return ledger.read(directory.RunPaths(root).ledger).header


@pytest.fixture
def root(tmp_path):
    ESTrainer(args=runs.toy(tmp_path / "run", sigma=None)).train()
    return tmp_path / "run"


@pytest.fixture(params=["toy", "transformers"])
def run(request, tmp_path):
    if request.param == "toy":
        return prepare(runs.toy(tmp_path / "run", sigma=None))
    folder = models.save_family("llama", tmp_path / "model")
    config = Config(model=str(folder), max_completion_length=8, reward_workers=0)
    return prepare(config, TaskInputs(length, None, ROWS, ROWS, None))


def test_at_the_found_sigma_members_lose_what_the_rule_asks_for(run):
    engine = engines.create(run.config)
    engine.load()
    measured = sigma_search.search(engine, run.config, run.task)
    prompts = sigma_search.answered(engine, run.config, run.task)
    assert sigma_search.loss(engine, run.config, prompts, found(measured)) == pytest.approx(TARGET, rel=0.4)
    assert measured == sigma_search.search(engine, run.config, run.task)
    engine.close()


def test_the_loss_is_zero_without_a_perturbation_and_grows_with_it(run):
    engine = engines.create(run.config)
    engine.load()
    prompts = sigma_search.answered(engine, run.config, run.task)
    losses = [sigma_search.loss(engine, run.config, prompts, sigma) for sigma in (1e-9, 0.1, 0.3, 1.0)]
    assert losses[0] == pytest.approx(0.0, abs=1e-3)
    assert losses[0] < losses[1] < losses[2] < losses[3]
    engine.close()


def test_the_ledger_and_the_configuration_have_what_was_found(root):
    measured = header(root).measured
    assert header(root).config["sigma"] == found(measured) == recorded_config.run_config(root).sigma
    assert ledger.read(directory.RunPaths(root).ledger).records[0].plan.sigma == found(measured)
    verify_run(root)


def test_a_run_with_the_found_sigma_is_the_same_but_for_the_measurements(root, tmp_path):
    ESTrainer(args=runs.toy(tmp_path / "given", sigma=header(root).config["sigma"])).train()
    one, two = (ledger.read(directory.RunPaths(place).ledger) for place in (root, tmp_path / "given"))
    assert one.records == two.records
    assert two.header.measured == ()


@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_an_edited_measurement_is_found(root, place):
    def change(data):
        if "measured" in data:
            data["measured"][place][1] = 5.0

    runs.edit_ledger(root, change)
    with pytest.raises(LedgerError, match="measure"):
        verify_run(root)


def test_an_edited_sigma_is_found(root):
    def change(data):
        if "measured" in data:
            data["config"]["sigma"] *= 2.0
        if "sigma" in data:
            data["sigma"] *= 2.0

    runs.edit_ledger(root, change)
    (directory.RunPaths(root).config).unlink()
    with pytest.raises(LedgerError, match="its measurements give"):
        verify_run(root)


def test_a_resumed_run_keeps_its_sigma_and_measures_nothing(tmp_path, monkeypatch):
    ESTrainer(args=runs.toy(tmp_path / "whole", sigma=None)).train()
    ESTrainer(args=runs.toy(tmp_path / "run", sigma=None, generations=3)).train()
    monkeypatch.setattr(sigma_search, "search", None)
    resumed = ESTrainer(args=runs.toy(tmp_path / "run", sigma=None))
    resumed.train(resume_from_checkpoint=True)
    whole, cut = (ledger.read(directory.RunPaths(tmp_path / name).ledger) for name in ("whole", "run"))
    assert (whole.header, whole.records) == (cut.header, cut.records)
    assert resumed.config.sigma == whole.header.config["sigma"]


def test_a_given_sigma_cannot_be_left_out_on_resume(tmp_path):
    ESTrainer(args=runs.toy(tmp_path / "run", generations=3)).train()
    with pytest.raises(RunError, match=r"sigma: 0\.05 → None"):
        ESTrainer(args=runs.toy(tmp_path / "run", sigma=None)).train(resume_from_checkpoint=True)


def test_a_start_that_fails_while_sigma_is_measured_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sigma_search, "loss", fail)
    with pytest.raises(KeyboardInterrupt):
        ESTrainer(args=runs.toy(tmp_path / "run", sigma=None)).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_of_any_number_find_the_sigma_of_one_process(tmp_path, workers):
    config = ray_config(tmp_path / "ray", sigma=None, alpha=None, ray={"workers": workers})
    with inline(seed=workers):
        ESTrainer(args=config).train()
    ESTrainer(args=alone(config, tmp_path / "alone")).train()
    assert runs.ledger_bytes(tmp_path / "ray") == runs.ledger_bytes(tmp_path / "alone")
    assert header(tmp_path / "ray").measured


def test_a_model_that_answers_nothing_needs_a_sigma(tmp_path, monkeypatch):
    monkeypatch.setattr("seedtune.engines.toy.engine.ToyEngine._text", lambda *_: " ")
    with pytest.raises(ConfigError, match=r"answers 8 training prompts with nothing\. Give sigma"):
        ESTrainer(args=runs.toy(tmp_path / "run", sigma=None)).train()
    assert not (tmp_path / "run").exists()
