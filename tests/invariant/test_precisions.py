"""A run is its ledger: in every precision, replayed, resumed and cut into pieces it ends at the same bits."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import pytest

import runs
from seedtune.run import directory
from seedtune.trainer import ESTrainer

MATRIX = [
    {"perturbation": perturbation, "weights_dtype": weights_dtype, "toy": {"size": 5}, "dtype": dtype}
    for perturbation, weights_dtype, dtype in product(
        ("gaussian", "lowrank"), ("float32", "model"), ("float32", "bfloat16", "float16")
    )
]
MATRIX += [
    {"perturbation": perturbation, "weights_dtype": "model", "subspaces": 2, "toy": {"size": 5}, "dtype": "bfloat16"}
    for perturbation in ("gaussian", "lowrank")
]
MATRIX += [
    {"perturbation": "flipout", "weights_dtype": kept, "shared_noise": k, "toy": {"size": 5}, "dtype": dtype}
    for kept, k, dtype in (("float32", 1, "bfloat16"), ("model", 2, "float16"), ("model", 1, "bfloat16"))
]


@pytest.mark.parametrize("settings", MATRIX, ids=lambda s: "-".join(map(str, s.values())))
def test_a_run_is_rebuilt_from_its_ledger_alone(settings, tmp_path: Path):
    whole = ESTrainer(args=runs.toy(tmp_path / "whole", **settings))
    whole.train()
    first = runs.toy(tmp_path / "resumed", **settings)
    ESTrainer(args=first.replace(generations=2)).train()
    ESTrainer(args=first).train(resume_from_checkpoint=True)
    end = whole.load().fingerprint()
    assert runs.fingerprint(tmp_path / "resumed") == end
    shutil.rmtree(directory.RunPaths(tmp_path / "whole").snapshots)
    assert runs.fingerprint(tmp_path / "whole") == end
