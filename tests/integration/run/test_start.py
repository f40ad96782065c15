"""The start of a run: the directory is locked before the model is loaded."""

from __future__ import annotations

import pytest

import runs
from seedtune.errors import ModelError, RunError
from seedtune.rollouts import prompts
from seedtune.run import directory, replay
from seedtune.run.ledger import Ledger
from seedtune.trainer import ESTrainer


def test_a_second_start_is_refused_while_the_first_loads_the_model(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    with Ledger.claimed(root / "ledger.jsonl"):
        with pytest.raises(RunError, match="is being trained by another process"):
            ESTrainer(args=runs.toy(root)).train()
        assert [path.name for path in root.iterdir()] == ["ledger.jsonl"]
    (root / "ledger.jsonl").touch()  # as a process that is killed while it loads leaves it
    ESTrainer(args=runs.toy(root, generations=1)).train()


def test_a_run_whose_model_cannot_be_loaded_leaves_nothing_behind(tmp_path, monkeypatch):
    root = tmp_path / "run"

    def fail(_):
        assert [path.name for path in root.iterdir()] == ["ledger.jsonl"]
        raise ModelError("broken")

    monkeypatch.setattr(replay, "load_base", fail)
    with pytest.raises(ModelError, match="broken"):
        ESTrainer(args=runs.toy(root)).train()
    assert not root.exists()


def test_a_run_whose_header_cannot_be_made_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise ModelError("no such template")

    monkeypatch.setattr(prompts, "digest", fail)
    with pytest.raises(ModelError, match="no such template"):
        ESTrainer(args=runs.toy(tmp_path / "run")).train()
    assert not (tmp_path / "run").exists()


def test_a_run_reads_its_metrics_only_before_and_after_its_generations(tmp_path, monkeypatch):
    reads, read_lines = [], directory.read_lines
    monkeypatch.setattr(directory, "read_lines", lambda path: (reads.append(path.name), read_lines(path))[1])
    root = tmp_path / "run"
    ESTrainer(args=runs.toy(root, generations=8, eval_steps=1)).train()
    assert reads.count("metrics.jsonl") <= 5
    ESTrainer(args=runs.toy(root, generations=10, eval_steps=1)).train(resume_from_checkpoint=True)
    assert [row["generation"] for row in runs.rows(root / "metrics.jsonl") if "eval_reward" in row] == [*range(11)]
