"""The repository's own tests of kernels and of the engine, on the device; warnings of other versions are no errors."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

from benchmarks.gpu_check.check import ROOT, Check

KERNELS = (
    "tests/unit/numerics/kernels/test_gpu_weights.py",
    "tests/unit/numerics/kernels/test_gpu.py",
    "tests/invariant/test_kernels_agree.py",
    "tests/unit/engines/vllm/test_tensor_layout.py",
)
ENGINE = ("tests/contract/engines/transformers", "tests/contract/engines/test_rows.py")
PLAIN = ("-q", "-o", "filterwarnings=", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider")
SHORTEST, LONGEST = 30.0, 240.0
"""Seconds that the tests may take, depending on what the budget leaves."""


def run(check: Check) -> None:
    """Run pytest in a process of its own, and say how it ended; the last lines are printed if it failed."""
    files = check.pick((*KERNELS, *ENGINE), (f"{KERNELS[0]}::test_both_kinds_of_weights_draw_the_same_factors",))
    processes = ("-n", "12") if importlib.util.find_spec("xdist") and not check.dry else ()
    command = (sys.executable, "-m", "pytest", *files, *PLAIN, "-m", "not slow", *processes, "--maxfail=20")
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "SEEDTUNE_TEST_DEVICE": check.device},
        capture_output=True,
        text=True,
        timeout=check.pick(max(SHORTEST, min(LONGEST, check.left())), None),
        check=False,
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    last = lines[-1] if lines else f"status {done.returncode}"
    check.say("suite", last.strip("= "), "no failures expected", wrong=done.returncode != 0)
    for line in lines[-25:-1] if done.returncode else ():
        print("   ", line[:170])
