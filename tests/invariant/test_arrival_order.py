"""What a run makes of its rollouts does not depend on when they arrive."""

from __future__ import annotations

import numpy as np
import pytest

import runs
from seedtune.engines.toy.engine import ToyEngine
from seedtune.trainer import ESTrainer

ORDERS = {
    "reversed": lambda rollouts: rollouts[::-1],
    "shuffled": lambda rollouts: [rollouts[i] for i in np.random.default_rng(5).permutation(len(rollouts))],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_rollouts_in_any_order_give_the_same_run(tmp_path, monkeypatch, order):
    config = runs.toy(tmp_path / "straight", members_per_job=2)
    ESTrainer(args=config).train()
    real = ToyEngine.evaluate
    monkeypatch.setattr(ToyEngine, "evaluate", lambda self, jobs: iter(order(list(real(self, jobs)))))
    ESTrainer(args=config.replace(output_dir=str(tmp_path / "other"))).train()
    runs.assert_same_run(tmp_path / "other", tmp_path / "straight")
