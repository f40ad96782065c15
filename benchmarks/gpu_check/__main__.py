"""The command: what the first minutes on a GPU should tell, the most telling first.

    scripts/gpu-check [--out DIR] [--budget 460] [--only env,ceilings,...] [--dry]

A line per figure; the same as JSON in DIR/gpu-check.json, written after every figure, so that a killed run still tells.
A step that fails says so, and the next one runs.  The status is 1 if a step failed or a figure is wrong.  --dry runs on
the CPU with tiny sizes, and Triton's kernels in its interpreter: it checks the steps, not the GPU.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_check.check import ROOT, Check

STEPS = ("env", "ceilings", "bits", "kernels", "parity", "engine", "products", "attention", "suite")
"""Modules beside this one, in order of answers per second; the long suite last."""

SHORTEST = 15.0
"""With less time left no further step begins."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; return the exit status."""
    options = _parser().parse_args(arguments)
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
    out = Path(tempfile.mkdtemp(prefix="gpu-check-")) if options.out is None and options.dry else options.out
    check = Check(out or ROOT / "benchmarks" / "results" / "gpu", budget=options.budget, dry=options.dry)
    for name in options.only:
        _run(check, name)
        if name == "env" and check.wrong():
            print("The environment is not complete: no other step can run.")
            break
    wrong = check.wrong()
    print(f"{check.file}: {check.count()} figures, {len(wrong)} wrong{': ' * bool(wrong)}{', '.join(wrong)}")
    return bool(wrong)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="default benchmarks/results/gpu; with --dry a temporary folder")
    parser.add_argument("--budget", type=float, default=460.0, help="seconds")
    parser.add_argument("--only", type=_names, default=STEPS, help="steps, separated by commas: " + ", ".join(STEPS))
    parser.add_argument("--dry", action="store_true", help="on the CPU with tiny sizes")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(STEPS):
        raise argparse.ArgumentTypeError(f"no steps {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}")
    return names


def _run(check: Check, name: str) -> None:
    """Run a step; its failure is noted, and ends nothing else."""
    step = check.begin(name)
    if check.left() < (0.0 if check.dry else SHORTEST):
        check.end(step, "skipped: no time left")
        return
    try:
        module = importlib.import_module(f"benchmarks.gpu_check.{name}")
        print(f"--- {name}: {(module.__doc__ or '').strip().splitlines()[0]}", flush=True)
        module.run(check)
    except Exception as error:  # noqa: BLE001 - the named boundary: the next step must run
        traceback.print_exc()
        check.end(step, f"failed: {type(error).__name__}: {error}"[:500])
    else:
        check.end(step, "done")


if __name__ == "__main__":
    sys.exit(main())
