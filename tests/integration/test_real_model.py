"""The built-in model for real: it answers, it learns nothing false about itself, survives kill -9 and is exported."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import runs
from seedtune import ESConfig, ESTrainer
from seedtune.engines.transformers.builtin_models import dense_options, parsed_once
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.numerics.noise import Noise
from seedtune.run import ledger
from seedtune.types import UNPERTURBED, Job, Prompt, Sampling
from waiting import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]


def config(root: Path) -> ESConfig:
    return ESConfig(
        model="smollm2-135m",
        output_dir=str(root),
        task="conciseness",
        generations=3,
        population=4,
        sigma=0.006,
        alpha=0.01,
        prompts_per_generation=1,
        max_completion_length=6,
        eval_prompts=2,
        save_steps=2,
        fingerprint_steps=1,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends undisturbed."""
    root = tmp_path_factory.mktemp("real") / "whole"
    ESTrainer(args=config(root)).train()
    return root


def test_the_built_in_model_knows_the_capital_of_france() -> None:
    engine = TransformersEngine(ESConfig(), noise=Noise(0))
    info = engine.load()
    assert info.dtype == "bfloat16"
    assert 0.78 < info.coverage.fraction < 0.80
    assert engine.fused == {"norms": 61, "gates": 30, "attention": 30, "layers": 30}
    question = Prompt(0, ({"role": "user", "content": "What is the capital of France?"},))
    (rollout,) = engine.evaluate([Job(0, 0.0, (UNPERTURBED,), (question,), Sampling(16))])
    assert "Paris" in rollout.text
    assert rollout.finish == "stop"


def kill_after_a_generation(root: Path, process: subprocess.Popen[bytes]) -> None:
    """SIGKILL as soon as the ledger holds a generation: while the update or the next rollouts are under way."""
    book = root / "ledger.jsonl"
    wait_until(lambda: book.exists() and b'"coefficients"' in book.read_bytes(), process=process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_of_the_real_model_ends_with_the_same_ledger(
    whole: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    settings = runs.write_config(config(killed), tmp_path / "config.yaml")
    words = [sys.executable, "-m", "seedtune", "train", str(settings)]
    kill_after_a_generation(killed, subprocess.Popen(words, stdout=subprocess.DEVNULL))
    assert command("resume", killed)[0] == 0
    assert (killed / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()
    assert ledger.read(whole / "ledger.jsonl").fingerprints.keys() == {1, 2, 3}


def test_a_fine_tune_of_the_real_model_is_read_back_with_its_tokenizer(
    whole: Path, command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    pytest.importorskip("gguf")
    code, output, errors = command("export", whole, "-o", tmp_path / "tuned.gguf")
    assert code == 0, errors
    assert output.splitlines()[-1] == f"chat with it: llama-cli -m {tmp_path / 'tuned.gguf'}"
    assert command("export", whole, "-o", tmp_path / "folder")[0] == 0
    with parsed_once():
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="tuned.gguf", dtype=torch.bfloat16, **dense_options()
        )
    read = model.state_dict()
    for name, tensor in load_file(tmp_path / "folder" / "model.safetensors").items():
        assert torch.equal(read[name], tensor), name
