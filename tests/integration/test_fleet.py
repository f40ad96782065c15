"""A fleet's run is the run of one process, whatever happens: real Ray, real processes, real signals."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

import runs
from crews import Attacker, alone, fleet, ray_here
from seedtune import replay
from seedtune.trainer import Trainer

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray", allow_module_level=True)  # not imported here: its settings come first


@pytest.fixture(scope="module", autouse=True)
def _ray():
    with ray_here():
        yield


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The run that all others must be, in this process."""
    return straight(tmp_path_factory.mktemp("alone") / "run")


def straight(root: Path, **settings) -> Path:
    Trainer(alone(fleet(root, **settings), root)).train()
    return root


def trained(config, **how) -> Trainer:
    trainer = Trainer(config, **how)
    try:
        trainer.train()
    finally:
        trainer.load().close()
    return trainer


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_writes_the_ledger_of_one_process(tmp_path, reference, workers):
    trained(fleet(tmp_path / "run", fleet={"workers": workers}))
    runs.assert_same_run(tmp_path / "run", reference)


def test_workers_killed_at_twenty_instants_change_nothing(tmp_path):
    settings = {"generations": 100, "fingerprint_steps": 7}
    whole = straight(tmp_path / "reference", **settings)
    config = fleet(tmp_path / "run", **settings, fleet={"workers": 3, "retries": 20}, toy={"size": 6, "delay": 0.15})
    trainer = Trainer(config)
    attacker = Attacker(lambda: trainer.engine, lambda pid: os.kill(pid, signal.SIGKILL), times=20, seed=1)
    attacker.start()
    trainer.train()
    attacker.over.set()
    trainer.load().close()
    assert len(attacker.done) >= 20
    runs.assert_same_run(tmp_path / "run", whole)
    metrics = runs.rows(replay.RunPaths(tmp_path / "run").metrics)
    assert sum(row.get("fleet/lost", 0) for row in metrics) >= 15
    assert sum(row.get("fleet/given_up", 0) for row in metrics) == 0
