"""Resuming a run, with its recorded arithmetic, and with files that agree with its ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from seedtune.config.config import Config
from seedtune.engines import recorded_arithmetic
from seedtune.engines.base import Engine, EngineInfo
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.errors import ProductsError, RunError, resume_command
from seedtune.run import directory, ledger, replay
from seedtune.run import metrics as run_metrics
from seedtune.run.recorded_config import weights_kind

log = logging.getLogger("seedtune")


def load(
    root: Path, config: Config, contents: ledger.Contents, *, progress: replay.Progress | None = None
) -> tuple[Engine, EngineInfo]:
    """Create an engine at the end of a run's ledger that computes as the run did, or as the settings say.

    Raises RunError if the recorded arithmetic is unavailable and the settings do not name another one.
    """
    recorded = contents.arithmetic()
    chosen, check = as_recorded(config, recorded), partial(_check, root, config, recorded)
    try:
        return replay.load(root, chosen, contents, check=check, progress=progress)
    except ProductsError as error:
        if chosen == config:
            raise
        raise RunError(
            f"{root} was computed with {recorded_arithmetic.summary(recorded)}, which cannot be had here: {error} To "
            f"go on with another arithmetic, name it: {resume_command(root)} --set products=KIND"
        ) from error


def as_recorded(config: Config, recorded: Entry) -> Config:
    """Replace ``auto`` by the recorded kind of products, and by the recorded sizes of a GPU's cache."""
    kind, own = _kind(config, recorded), config.transformers
    sizes = recorded_arithmetic.of_engine(recorded, "transformers").get("sizes", {})
    if sizes:
        rows = sizes["rows"] if own.max_rows is None else own.max_rows
        positions = sizes["positions"] if own.max_batch_tokens is None else own.max_batch_tokens
        found = {"max_rows": rows, "max_batch_tokens": positions}
        config = config.replace(transformers={**own.model_dump(), **found})
    return config.replace(products=kind) if config.products == "auto" and kind else config


def _kind(config: Config, entry: Entry) -> str:
    """Return the kind of products in an entry, of the transformers engine if it is one of several."""
    return recorded_arithmetic.kind(recorded_arithmetic.of_engine(entry, weights_kind(config.kinds)))


def _check(root: Path, config: Config, recorded: Entry, info: EngineInfo) -> None:
    """Raise RunError if a loaded engine computes otherwise than recorded and the settings do not name its products."""
    here = info.arithmetic
    if not recorded or config.products != "auto" or recorded_arithmetic.same(recorded, here):
        return
    raise RunError(
        f"{root} was computed with {recorded_arithmetic.summary(recorded)}; here it would be "
        f"{recorded_arithmetic.summary(here)}: rewards could differ from those of a run that never stopped."
        f"{_threads(recorded, here)} To go on all the same, which the ledger will say: "
        f"{resume_command(root)} --set products={_kind(config, here)}"
    )


def _threads(recorded: Entry, here: Entry) -> str:
    """Return the fix if only the number of threads differs."""
    before, now = dict(recorded.get("library", {})), dict(here.get("library", {}))
    threads, _ = before.pop("threads", None), now.pop("threads", None)
    return "" if before != now or threads is None else f" Set OMP_NUM_THREADS={threads} to have as many threads."


def note(book: ledger.Ledger, paths: directory.RunPaths, contents: ledger.Contents, info: EngineInfo) -> None:
    """Record in ledger and metrics if rewards are computed differently from here on."""
    before, now, done = contents.arithmetic(), info.arithmetic, contents.generations
    if recorded_arithmetic.same(before, now):
        return
    log.warning(
        "%s: from generation %d on rewards are computed with %s, before with %s",
        *(paths.root, done, recorded_arithmetic.summary(now), recorded_arithmetic.summary(before)),
    )
    book.note(done, arithmetic=now)
    directory.append_lines(paths.metrics, [run_metrics.products_row(info, done)])


def mend(paths: directory.RunPaths, contents: ledger.Contents) -> None:
    """Repair the files after a kill: drop lines beyond the ledger, and restore lines that only the ledger has."""
    done = contents.generations
    metrics = [row for row in directory.read_lines(paths.metrics) if row["generation"] <= done]
    kinds = ("reward", "products", "eval_reward")
    there = {(kind, row["generation"]) for row in metrics for kind in kinds if kind in row}
    lost = [run_metrics.restored(r) for r in contents.records if ("reward", r.plan.generation + 1) not in there]
    lost += [
        {"generation": start, "products": recorded_arithmetic.kind(used), "arithmetic": dict(used), "restored": True}
        for start, used in contents.arithmetics.items()
        if used and ("products", start) not in there
    ]
    directory.write_lines(paths.metrics, sorted(metrics + lost, key=_place))
    last = {"train": done, "test": done if ("eval_reward", done) in there else done - 1}
    samples = directory.read_lines(paths.samples)
    directory.write_lines(paths.samples, [row for row in samples if row["generation"] <= last[row["split"]]])


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    """Sort by generation: its own line, its evaluation, then changes from there on; the initial products line first."""
    generation = row["generation"]
    if "products" in row:
        return generation, 2 if generation else -1
    return generation, int("eval_reward" in row)
