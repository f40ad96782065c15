"""Fifty generations of a tiny real transformer: verified, replayed, resumed, exported and packed to the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numba
import pytest
import torch
from safetensors.torch import load_file, save_file

import models
import runs
from scores import variety
from seedtune import ESConfig, ESTrainer, apply_pack, diff_runs, export_run, pack_run, verify_run
from seedtune.engines import base as engines_base
from seedtune.errors import LedgerError, PackError
from seedtune.numerics.kernels import cpu
from seedtune.run.artifacts.verify import Verification

pytestmark = pytest.mark.slow

GENERATIONS, STOP = 50, 23
DATA = [{"prompt": text} for text in ("Say a", "Say b", "Tell me", "Why?")]


def config(root: Path, base: Path, **settings: Any) -> ESConfig:
    small = {
        "generations": GENERATIONS,
        "population": 4,
        "prompts_per_generation": 2,
        "sigma": 0.05,
        "alpha": 0.05,
        "max_completion_length": 4,
        "fingerprint_steps": 5,
        "save_steps": 20,
        "transformers": {"device": "cpu"},
    }
    recorded = json.loads((base / "seedtune-test.json").read_text())
    return ESConfig(model=str(base), output_dir=str(root), reward_workers=0, **{**small, **recorded, **settings})


def train(settings: ESConfig, *, resume: bool = False) -> None:
    ESTrainer(args=settings, reward_funcs=variety, train_dataset=DATA).train(resume_from_checkpoint=resume)


WAYS = {
    "lowrank, float32 model": (torch.float32, {"rank": 2}),
    "flipout, bfloat16 model": (torch.bfloat16, {"perturbation": "flipout", "shared_noise": 2}),
    "lowrank, weights_dtype=model": (torch.bfloat16, {"weights_dtype": "model"}),
    "gaussian, bfloat16 model": (torch.bfloat16, {"perturbation": "gaussian", "trainable": ["!*norm*"]}),
    "gaussian, weights_dtype=model": (torch.bfloat16, {"perturbation": "gaussian", "weights_dtype": "model"}),
}


@pytest.fixture(scope="module", params=WAYS)
def base(request, tmp_path_factory) -> Path:
    """A base model, with a note of how it is trained."""
    dtype, settings = WAYS[request.param]
    folder = models.save_family("llama", tmp_path_factory.mktemp("base"), dtype=dtype)
    (folder / "seedtune-test.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Path:
    """The whole run."""
    root = tmp_path_factory.mktemp("runs") / "whole"
    train(config(root, base))
    return root


@pytest.fixture(scope="module")
def verified(run) -> Verification:
    """What verifying the whole run found."""
    return verify_run(run, snapshots=True)


@pytest.fixture(scope="module")
def stopped(base, tmp_path_factory) -> Path:
    """The same run, ended earlier."""
    root = tmp_path_factory.mktemp("runs") / "stopped"
    train(config(root, base, generations=STOP))
    return root


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_model(one: Path, two: Path) -> None:
    mine, theirs = tensors(one), tensors(two)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])


def test_the_run_moves_the_model(run, base, tmp_path):
    export_run(run, tmp_path / "model")
    assert any(not torch.equal(tensor, tensors(base)[name]) for name, tensor in tensors(tmp_path / "model").items())


def test_verify_passes_and_replay_from_the_base_is_the_whole_run(run, verified):
    assert verified.matched == tuple(range(5, GENERATIONS + 1, 5))
    assert verified.audit.exact == GENERATIONS
    assert verified.snapshots == (40, 50)
    assert verified.fingerprint == runs.fingerprint(run)


def test_a_run_stopped_and_resumed_is_the_whole_run(run, stopped, base, tmp_path):
    root = shutil.copytree(stopped, tmp_path / "resumed")
    train(config(root, base), resume=True)
    assert diff_runs(run, root).equal
    assert runs.fingerprint(root) == runs.fingerprint(run)


def test_the_export_of_a_generation_is_the_run_stopped_there(run, stopped, tmp_path):
    assert diff_runs(run, stopped).generations == (GENERATIONS, STOP)
    export_run(run, tmp_path / "early", generation=STOP)
    export_run(stopped, tmp_path / "stopped")
    assert_same_model(tmp_path / "early", tmp_path / "stopped")


@pytest.mark.parametrize("generation", [None, STOP])
def test_a_pack_applied_to_the_base_is_the_export(run, base, tmp_path, generation):
    pack_run(run, tmp_path / "pack", generation=generation)
    moved = shutil.copytree(base, tmp_path / "moved")
    apply_pack(tmp_path / "pack", tmp_path / "applied", base=str(moved), sets=["transformers.device=cpu"])
    export_run(run, tmp_path / "exported", generation=generation)
    assert_same_model(tmp_path / "applied", tmp_path / "exported")
    assert (tmp_path / "applied" / "tokenizer.json").is_file()


def flip(folder: Path) -> str:
    """Flip the lowest bit of one element of one weight; the tensor's name."""
    weights = tensors(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    weights[name].view(torch.uint8).reshape(-1)[100] ^= 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return name


def test_a_flipped_bit_of_the_base_model_is_named_by_both_fingerprints(run, base, verified, tmp_path):
    other = shutil.copytree(base, tmp_path / "other")
    flip(other)
    recorded = verified.contents.header.base_fingerprint
    with pytest.raises(LedgerError, match=f"base model with fingerprint {recorded}, but '{other}' has [0-9a-f]+. Give"):
        verify_run(run, model=str(other))
    pack_run(run, tmp_path / "pack")
    with pytest.raises(PackError, match=f"with fingerprint {recorded}, but '{other}' has [0-9a-f]+. Give the same"):
        apply_pack(tmp_path / "pack", tmp_path / "model", base=str(other))
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("bit", [0, 51, 63])
def test_a_flipped_bit_of_a_coefficient_is_named(run, tmp_path, bit):
    root = shutil.copytree(run, tmp_path / "edited")
    runs.edit_generation(
        root, 31, lambda data: data["coefficients"].__setitem__(2, runs.flip_bit(data["coefficients"][2], bit))
    )
    with pytest.raises(LedgerError, match=r"generation 31: the coefficient of member 1\+ is "):
        verify_run(root)


@pytest.mark.parametrize(("threads", "batch"), [(1, 3), (2, 1)])
def test_batches_threads_and_pieces_of_any_number_give_the_same_bits(run, verified, monkeypatch, threads, batch):
    before = numba.get_num_threads()
    monkeypatch.setattr(engines_base, "BATCH_UPDATES", batch)
    monkeypatch.setattr(cpu, "PARALLEL_FROM", 1)
    monkeypatch.setattr(cpu, "FACTORS", 100)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        assert verify_run(run).fingerprint == verified.fingerprint
    finally:
        numba.set_num_threads(before)
