"""The plan of the study, in order of value, and the runner: finished cells are kept, and survive any stop."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.evidence import baselines, methods
from benchmarks.evidence.baselines import BEST_PROMPT
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.methods import GIVEN_NOTHING, GRIDS
from benchmarks.evidence.tasks import CHAINS, SMALL, SMOLLM2, TASKS

Row = dict[str, Any]

TUNED_WITH = 1000
"""The seed of all short runs: none of the results'."""

SHORT = 0.5
"""Part of the budget that a short run has."""

TUNED = "seedtune, σ and α tuned"

PRELOADED = ["seedtune.engines.transformers.engine", "seedtune.trainer", "transformers.models.llama.modeling_llama"]
"""What every cell imports.  TRL is not there: it would count in the memory of runs that do without."""


@dataclass(frozen=True)
class Block:
    """A question: tasks, models and methods, every one with every other."""

    name: str
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    methods: tuple[str, ...]
    variants: bool = False
    """Also every change of one thing from the tuned settings, see `methods.variants`."""


ALL = tuple(name for name in GRIDS if name != BEST_PROMPT)

PLAN = (
    Block("sample efficiency", ("countdown", "products"), ("llama",), ALL),
    Block("horizon", tuple(f"chain of {n}" for n in (1, 2, 4)), (CHAINS,), (GIVEN_NOTHING, TUNED, "GRPO")),
    Block("robustness", ("countdown",), SMALL[1:], (GIVEN_NOTHING, TUNED, "GRPO")),
    Block("questions", ("countdown", "products"), ("llama",), (), variants=True),
    Block("reward hacking", ("conciseness",), (SMOLLM2,), (GIVEN_NOTHING, TUNED, "GRPO", BEST_PROMPT)),
    Block("instructions", ("format",), (SMOLLM2,), (GIVEN_NOTHING, TUNED, "GRPO", BEST_PROMPT)),
)
"""In order of value."""


class Store:
    """Finished cells in a file of lines, and the ledgers and packs of those that are results."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.runs = folder, folder / "cells.jsonl", folder / "runs"
        self.runs.mkdir(parents=True, exist_ok=True)
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.cells: dict[str, Row] = {row["id"]: row for row in map(json.loads, lines)}
        self._lock = threading.Lock()

    def add(self, cell: Cell, result: Row, run: Path) -> None:
        """Keep a finished cell; the ledger and the pack first, so that a cell in the file has both."""
        if (run / "ledger.jsonl").exists() and cell.purpose != "tune":
            self._ship(cell, run)
        row = {"id": cell.id, **asdict(cell), **result}
        with self._lock, self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.cells[cell.id] = row

    def _ship(self, cell: Cell, run: Path) -> None:
        from seedtune.run.artifacts.pack import pack_run
        from seedtune.run.artifacts.push import public_ledger

        public = gzip.compress(public_ledger(run / "ledger.jsonl"), mtime=0)
        (self.runs / f"{cell.id}.jsonl.gz").write_bytes(public)
        (self.runs / f"{cell.id}.pack").unlink(missing_ok=True)
        pack_run(run, self.runs / f"{cell.id}.pack", generation="last")

    def of(self, **wanted: Any) -> list[Row]:
        """The cells with these values."""
        return [row for row in self.cells.values() if all(row.get(name) == value for name, value in wanted.items())]


# ------------------------------------------------------------------------------ which cells


def short_runs(block: Block) -> list[Cell]:
    """The runs by which settings are chosen: as many for every method that has any."""
    return [
        Cell("tune", task, model, method, label, settings, TUNED_WITH, SHORT)
        for task in block.tasks
        for model in block.models
        for method in block.methods
        if len(GRIDS[method](TASKS[task])) > 1
        for label, settings in GRIDS[method](TASKS[task]).items()
    ]


def results(block: Block, store: Store, seeds: Iterable[int]) -> list[Cell]:
    """The runs of the tables, seed by seed, with the settings that were best on training prompts."""
    found = []
    for seed in seeds:
        for task in block.tasks:
            for model in block.models:
                for method in block.methods:
                    label, settings = chosen(store, task, model, method)
                    found.append(Cell("result", task, model, method, label, settings, seed))
                if block.variants:
                    for label, settings in methods.variants(chosen(store, task, model, TUNED)[1]).items():
                        found.append(Cell("variant", task, model, "variant", label, settings, seed))
    return found


def chosen(store: Store, task: str, model: str, method: str) -> tuple[str, Row]:
    """The settings whose short run ended best on training prompts; those of the middle if there was none."""
    grid = GRIDS[method](TASKS[task])
    runs = store.of(purpose="tune", task=task, model=model, method=method)
    if not runs:
        label = list(grid)[len(grid) // 2]
        return label, grid[label]
    best = max(runs, key=lambda row: row["points"][-1]["measured"]["reward"])
    return best["label"], best["settings"]


def quick(seeds: Iterable[int]) -> list[Cell]:
    """A quarter of the budget of a first task, with settings of the middle: minutes in all."""
    found = []
    for seed in seeds:
        for method in (GIVEN_NOTHING, TUNED, "GRPO", "GRPO, SGD"):
            grid = GRIDS[method](TASKS["countdown"])
            label = list(grid)[len(grid) // 2]
            found.append(Cell("quick", "countdown", "llama", method, label, grid[label], seed, 0.25))
    return found


def alone(store: Store) -> list[Cell]:
    """Results of seed 0 once more, one at a time with all cores: what they cost, and whether they repeat exactly."""
    found = [
        Cell(**{name: row[name] for name in Cell.__dataclass_fields__}) for row in store.of(purpose="result", seed=0)
    ]
    wanted = [cell for cell in found if cell.task in ("countdown", "conciseness") and cell.model in ("llama", SMOLLM2)]
    return [replace(cell, purpose="timing") for cell in wanted if not baselines.is_baseline(cell.method)]


# ------------------------------------------------------------------------------ making them


def make(cells: list[Cell], store: Store, jobs: int) -> None:
    """Run what is missing, each in a process of its own, and say how long the rest will take."""
    missing = [cell for cell in cells if cell.id not in store.cells]
    taken: list[float] = []

    def one(cell: Cell) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            started = time.perf_counter()
            result = _process(cell, Path(scratch) / "run", jobs)
            taken.append(time.perf_counter() - started)
            store.add(cell, result | {"process_seconds": round(taken[-1], 1), "jobs": jobs}, Path(scratch) / "run")
        left = (len(missing) - len(taken)) * sum(taken) / len(taken) / jobs
        ends = " → ".join(f"{result['points'][i]['measured']['reward']:.3f}" for i in (0, -1))
        what = f"{cell.purpose} | {cell.task} | {cell.model} | {cell.method} | {cell.label} | seed {cell.seed}"
        print(f"{what}: {ends}, {taken[-1]:.0f} s; {len(missing) - len(taken)} left, {left / 60:.0f} min", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(one, missing))


def _process(cell: Cell, run: Path, jobs: int) -> Row:
    """A cell in a process of its own, forked from one that has imported what every cell imports: seconds of each."""
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    os.environ |= {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(PRELOADED)
    said, found = run.with_suffix(".log"), run.with_suffix(".json")
    process = forks.Process(target=run_cell, args=(cell, run, said, found))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{cell}: {said.read_text(encoding='utf-8', errors='replace')[-3000:]}")
    result: Row = json.loads(found.read_text(encoding="utf-8"))
    return result


def run_cell(cell: Cell, run: Path, said: Path, found: Path) -> None:
    """A cell in this process: what it prints goes to the file ``said``, its result to ``found``."""
    from benchmarks.evidence import es, grpo

    with said.open("wb") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    if baselines.is_baseline(cell.method):
        result = baselines.run(cell)
    else:
        result = grpo.run(cell) if methods.is_grpo(cell.method) else es.run(cell, run)
    found.write_text(json.dumps(result), encoding="utf-8")
