"""With fma32 a run has one ledger, whatever the width of the processor's vectors and the number of threads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import runs
from models import save_family
from seedtune.numerics.machine import processor
from vectors import AVX2

SETTINGS = {
    "generations": 3,
    "population": 4,
    "prompts_per_generation": 3,
    "sigma": 0.05,
    "max_completion_length": 12,
    "eval_prompts": 4,
    "fingerprint_steps": 1,
    "task": "conciseness",
    "seed": 3,
    "prompt_truncation": "left",
}


def ledger_of(folder: Path, root: Path, *sets: str, **env: str) -> bytes:
    """What a run in a process of its own, in that environment, leaves in its ledger."""
    listed = [f"{key}={value}" for key, value in SETTINGS.items()]
    more = [f"model={folder}", f"output_dir={root}", "products=fma32", *listed, *sets]
    done = runs.cli("train", *(word for one in more for word in ("--set", one)), **env)
    assert done.returncode == 0, done.stderr
    return (root / "ledger.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(processor.vector_name() not in ("AVX-512", "AVX512-BF16"), reason="one vector width only")
@pytest.mark.parametrize(("dtype", "sets"), [
    (torch.bfloat16, ()),
    (torch.float32, ("perturbation=gaussian", "temperature=0.8")),
], ids=["bfloat16-lowrank", "float32-gaussian-sampled"])  # fmt: skip
def test_code_for_avx2_and_for_avx512_makes_the_same_run(
    dtype: torch.dtype, sets: tuple[str, ...], tmp_path: Path
) -> None:
    folder = save_family("llama", tmp_path / "model", dtype=dtype)
    wide = ledger_of(folder, tmp_path / "wide", *sets)
    narrow = ledger_of(folder, tmp_path / "narrow", *sets, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", **AVX2)
    assert wide == narrow
    assert wide.count(b'"rewards"') == SETTINGS["generations"]
