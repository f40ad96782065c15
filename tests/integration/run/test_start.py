"""The start of a run: the directory is locked before the model is loaded."""

from __future__ import annotations

import pytest

import runs
from seedtune.errors import ModelError, RunError
from seedtune.run import replay
from seedtune.run.ledger import Ledger
from seedtune.trainer import Trainer


def test_a_second_start_is_refused_while_the_first_loads_the_model(tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    with Ledger.claimed(root / "ledger.jsonl"):
        with pytest.raises(RunError, match="is being trained by another process"):
            Trainer(runs.toy(root)).train()
        assert [path.name for path in root.iterdir()] == ["ledger.jsonl"]
    (root / "ledger.jsonl").touch()  # as a process that is killed while it loads leaves it
    Trainer(runs.toy(root, generations=1)).train()


def test_a_run_whose_model_cannot_be_loaded_leaves_nothing_behind(tmp_path, monkeypatch):
    root = tmp_path / "run"

    def fail(_):
        assert [path.name for path in root.iterdir()] == ["ledger.jsonl"]
        raise ModelError("broken")

    monkeypatch.setattr(replay, "load_base", fail)
    with pytest.raises(ModelError, match="broken"):
        Trainer(runs.toy(root)).train()
    assert not root.exists()
