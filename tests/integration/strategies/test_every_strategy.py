"""Every strategy through the whole pipeline, on a toy and on a transformer: trained, verified, resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contract.strategies.test_strategies import STRATEGIES

import models
import runs
from scores import small_letters
from seedtune import ESTrainer, verify_run
from seedtune.config.config import Config
from seedtune.run import directory

SMALL = {"population": 8, "sigma": 0.05, "fingerprint_steps": 1, "eval_steps": 0, "save_steps": 3, "generations": 7}
MORE: dict[str, dict[str, Any]] = {
    "subspaces": {"alpha": 0.1, "subspaces": 2},
    "schedules": {
        "alpha": 0.1,
        "sigma_schedule": {"kind": "cosine", "over": 6},
        "alpha_schedule": {"kind": "linear", "over": 4, "warmup": 2},
    },
    "ranks": {"alpha": 0.1, "shaping": "centered_rank"},
    "subspaces-essam-decay": {
        "alpha": 0.1,
        "subspaces": 2,
        "anchor_l2": 0.5,
        "lookahead": {"radius": 0.5, "probes": 4},
    },
}


def small(settings: dict[str, Any]) -> dict[str, Any]:
    """A strategy's settings on a run of a second."""
    looked = dict(settings)
    if "probes" in looked.get("lookahead", {}):
        looked["lookahead"] = {**looked["lookahead"], "probes": 4}
    return {"alpha": None, **looked, **SMALL}


ALL = {**STRATEGIES, **MORE}


@pytest.mark.parametrize("settings", ALL.values(), ids=ALL)
def test_a_run_verifies_and_resumes_to_the_same_bytes(tmp_path, settings):
    config = runs.toy(tmp_path / "run", **small(settings))
    ESTrainer(args=config).train()
    assert verify_run(tmp_path / "run", snapshots=True).matched == tuple(range(1, 8))
    cut = config.replace(output_dir=str(tmp_path / "cut"), generations=4)
    ESTrainer(args=cut).train()
    ESTrainer(args=cut.replace(generations=7)).train(resume_from_checkpoint=True)
    assert runs.without_ends(tmp_path / "cut") == runs.without_ends(tmp_path / "run")
    assert runs.fingerprint(tmp_path / "cut") == runs.fingerprint(tmp_path / "run")


PROMPTS = [{"prompt": text} for text in ("Say a", "Say b", "Tell me", "Why?")]
HOW = {
    "auto": {},
    "auto-decay-essam": {
        "population": 32,
        "anchor_l2": 0.5,
        "anchor_l1": 0.001,
        "lookahead": {"radius": 0.5, "probes": 4},
    },
    "gaussian-essam": {"perturbation": "gaussian", "lookahead": {"radius": 0.02}},
    "gaussian-decay-model": {"perturbation": "gaussian", "weights_dtype": "model", "anchor_l2": 0.5},
    "subspaces": {"alpha": 0.1, "subspaces": 4},
    "flipout": {"perturbation": "flipout", "shared_noise": 8},
}


def transformer(root: Path, base: Path, **settings: Any) -> ESTrainer:
    small = {"population": 16, "sigma": 0.05, "generations": 16, "prompts_per_generation": 4, "fingerprint_steps": 4}
    more = {
        "max_completion_length": 8,
        "save_steps": 0,
        "transformers": {"device": "cpu"},
        "kl_steps": 8,
        "reward_workers": 0,
    }
    config = Config(model=str(base), output_dir=str(root), **{**small, **more, **settings})
    return ESTrainer(args=config, reward_funcs=small_letters, train_dataset=PROMPTS, eval_dataset=PROMPTS)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return models.save_family("llama", tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("settings", HOW.values(), ids=HOW)
def test_a_tiny_language_model_learns_and_its_run_verifies(tmp_path, base, settings):
    trainer = transformer(tmp_path / "run", base, **settings)
    after = trainer.train()["eval_reward"]
    rows = runs.rows(directory.RunPaths(tmp_path / "run").metrics)
    before = next(row["eval_reward"] for row in rows if "eval_reward" in row)
    assert after > before + 0.05
    assert verify_run(tmp_path / "run").matched == (4, 8, 12, 16)
    divergences = [row["kl"] for row in rows if "kl" in row]
    assert len(divergences) == 2
    assert all(value > 0.0 for value in divergences)
