"""The study's command.

    python -m benchmarks.evidence [--quick] [--blocks "sample efficiency" horizon] [--seeds 5] [--jobs 2]
    python -m benchmarks.evidence timing
    python -m benchmarks.evidence verify [CELL]
    python -m benchmarks.evidence page

Runs what is missing of the plan (study.py); finished cells are in benchmarks/results/evidence/cells.jsonl and are not
run again.  ``--quick`` is a small version of the first question in minutes.  ``timing`` repeats some runs, one at a
time on a machine that must be idle.  ``verify`` replays a cell's ledger from
the base model, compares the fingerprint, and measures the model again; without CELL a random one.  GRPO needs
``pip install "seedtune[bench]"``.
"""

from __future__ import annotations

import argparse
import secrets
from dataclasses import replace
from pathlib import Path

from benchmarks.evidence import page, study
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.verify import verify

RESULTS = Path(__file__).parents[1] / "results" / "evidence"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["run", "timing", "verify", "page"], default="run")
    parser.add_argument("cell", nargs="?", help="the id of a finished run to verify")
    parser.add_argument("--quick", action="store_true", help="a small version of the first question, in minutes")
    parser.add_argument("--blocks", nargs="+", choices=[block.name for block in study.PLAN])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, help="of these blocks, only these tasks")
    parser.add_argument("--seeds", type=int, help="of a result: 5, or 2 with --quick")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once, which share the cores")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def main() -> None:
    """Run the study or verify a cell of it."""
    options = parser().parse_args()
    store = study.Store(options.output)
    if options.what == "verify":
        shipped = sorted(file.name.removesuffix(".jsonl.gz") for file in store.runs.glob("*.jsonl.gz"))
        print(verify(store.cells[options.cell or secrets.choice(shipped)], store.runs))
        return
    if options.what == "page":
        page.write(store)
        return
    if options.what == "timing":
        study.make(study.alone(store), store, 1)
        return
    if options.quick:
        study.make(study.quick(range(options.seeds or 2)), store, options.jobs)
        return
    for block in study.PLAN:
        if options.blocks is None or block.name in options.blocks:
            if options.tasks:
                block = replace(block, tasks=tuple(task for task in block.tasks if task in options.tasks))
            study.make(study.short_runs(block), store, options.jobs)
            study.make(study.results(block, store, range(options.seeds or 5)), store, options.jobs)


if __name__ == "__main__":
    main()
