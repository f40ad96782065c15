"""The built-in model for real: it answers, it learns nothing false about itself, and it survives kill -9."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from seedtune.config.config import Config
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.numerics.noise import Noise
from seedtune.run import ledger
from seedtune.types import UNPERTURBED, Job, Prompt, Sampling
from waiting import wait_until

pytestmark = [pytest.mark.real, pytest.mark.slow]

CONFIG = """
model: smollm2-135m
task: conciseness
generations: 3
population: 4
sigma: 0.006
alpha: 0.01
prompts_per_generation: 1
max_completion_length: 6
eval_prompts: 2
save_steps: 2
fingerprint_steps: 1
"""


def test_the_built_in_model_knows_the_capital_of_france() -> None:
    engine = TransformersEngine(Config(), noise=Noise(0))
    info = engine.load()
    assert info.dtype == "bfloat16"
    assert 0.78 < info.coverage.fraction < 0.80
    assert engine.fused == {"norms": 61, "gates": 30, "attention": 30, "layers": 30}
    question = Prompt(0, ({"role": "user", "content": "What is the capital of France?"},))
    (rollout,) = engine.evaluate([Job(0, 0.0, (UNPERTURBED,), (question,), Sampling(16))])
    assert "Paris" in rollout.text
    assert rollout.finish == "stop"


def start(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "seedtune", *words], stdout=subprocess.DEVNULL)


def kill_after_a_generation(root: Path, process: subprocess.Popen[bytes]) -> None:
    """SIGKILL as soon as the ledger holds a generation: while the update or the next rollouts are under way."""
    book = root / "ledger.jsonl"
    wait_until(lambda: book.exists() and b'"coefficients"' in book.read_bytes(), process=process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_of_the_real_model_ends_with_the_same_ledger(tmp_path: Path) -> None:
    settings = tmp_path / "config.yaml"
    settings.write_text(CONFIG)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start("train", str(settings), "--set", f"output_dir={whole}").wait() == 0
    kill_after_a_generation(killed, start("train", str(settings), "--set", f"output_dir={killed}"))
    assert start("resume", str(killed)).wait() == 0
    assert (killed / "ledger.jsonl").read_bytes() == (whole / "ledger.jsonl").read_bytes()
    assert ledger.read(whole / "ledger.jsonl").fingerprints.keys() == {1, 2, 3}
