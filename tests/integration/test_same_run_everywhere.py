"""With fma32 a run has one ledger, whatever the width of the processor's vectors and the number of threads."""

from __future__ import annotations

import json
import subprocess
import sys
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


MORE = {
    "bfloat16-lowrank": ("dtype=bfloat16",),
    "float32-gaussian-sampled": ("dtype=float32", "perturbation=gaussian", "temperature=0.8"),
}

PROGRAM = """
import json, sys
from seedtune.cli import main
for arguments in json.loads(sys.argv.pop()):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""
"""Several commands, one after the other, in one process."""


def ledgers_of(root: Path, **env: str) -> dict[str, bytes]:
    """What every run of MORE, all in a process of that environment, leaves in its ledger."""
    common = [f"{key}={value}" for key, value in SETTINGS.items()]
    sets = {
        name: [f"model={root.parent / name}", f"output_dir={root / name}", "products=fma32", *common, *more]
        for name, more in MORE.items()
    }
    commands = [["train", *(word for one in given for word in ("--set", one))] for given in sets.values()]
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=runs.environment(**env))
    assert done.returncode == 0, done.stderr
    return {name: (root / name / "ledger.jsonl").read_bytes() for name in MORE}


@pytest.mark.slow
@pytest.mark.skipif(processor.vector_name() not in ("AVX-512", "AVX512-BF16"), reason="one vector width only")
def test_code_for_avx2_and_for_avx512_makes_the_same_runs(tmp_path: Path) -> None:
    for name, (dtype, *_) in MORE.items():
        save_family("llama", tmp_path / name, dtype=getattr(torch, dtype.removeprefix("dtype=")))
    wide = ledgers_of(tmp_path / "wide")
    narrow = ledgers_of(tmp_path / "narrow", OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="1", **AVX2)
    assert wide == narrow
    assert all(one.count(b'"rewards"') == SETTINGS["generations"] for one in wide.values())
