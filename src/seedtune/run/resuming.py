"""Resuming a run, with its recorded arithmetic, and with files that agree with its ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seedtune.config.config import Config
from seedtune.engines import recorded_arithmetic
from seedtune.engines.base import Engine, EngineInfo
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.errors import ProductsError, RunError, resume_command
from seedtune.run import directory, ledger, replay
from seedtune.run import metrics as run_metrics

log = logging.getLogger("seedtune")


def load(
    root: Path, config: Config, contents: ledger.Contents, *, progress: replay.Progress | None = None
) -> tuple[Engine, EngineInfo]:
    """Create an engine at the end of a run's ledger that computes as the run did, or as the settings say.

    Raises RunError if the recorded arithmetic is unavailable and the settings do not name another one.
    """
    recorded = contents.arithmetic()
    chosen = as_recorded(config, recorded)
    try:
        return replay.load(root, chosen, contents, check=_checker(root, config, recorded), progress=progress)
    except ProductsError as error:
        if chosen == config:
            raise
        raise RunError(
            f"{root} was computed with {recorded_arithmetic.words(recorded)}, which cannot be had here: {error} To go "
            f"on with another arithmetic, name it: {resume_command(root)} --set {config.kinds[0]}.products=KIND"
        ) from error


def as_recorded(config: Config, recorded: Entry) -> Config:
    """Replace ``auto`` by the recorded kind of products."""
    changes = {}
    for engine in config.kinds:
        section, kind = (
            getattr(config, engine),
            recorded_arithmetic.kind(recorded_arithmetic.of_engine(recorded, engine)),
        )
        if section.products == "auto" and kind:
            changes[engine] = {**section.model_dump(), "products": kind}
    return config.replace(**changes) if changes else config


def _checker(root: Path, config: Config, recorded: Entry) -> Callable[[EngineInfo], None]:
    """Return the check of a loaded engine's arithmetic, made before anything is replayed."""
    named = [engine for engine in config.kinds if getattr(config, engine).products != "auto"]

    def check(info: EngineInfo) -> None:
        if recorded and not named and not recorded_arithmetic.same(recorded, info.arithmetic):
            raise _refusal(root, config, recorded, info.arithmetic)

    return check


def _refusal(root: Path, config: Config, recorded: Entry, here: Entry) -> RunError:
    engine = next(name for name in config.kinds if _differs(recorded, here, name))
    kind = recorded_arithmetic.kind(recorded_arithmetic.of_engine(here, engine))
    return RunError(
        f"{root} was computed with {recorded_arithmetic.words(recorded)}; here it would be "
        f"{recorded_arithmetic.words(here)}: rewards could differ from those of a run that never stopped."
        f"{_threads(recorded, here)} To go on all the same, which the ledger will say: "
        f"{resume_command(root)} --set {engine}.products={kind}"
    )


def _differs(recorded: Entry, here: Entry, engine: str) -> bool:
    return recorded_arithmetic.of_engine(recorded, engine) != recorded_arithmetic.of_engine(here, engine)


def _threads(recorded: Entry, here: Entry) -> str:
    """Return the fix if only the number of threads differs."""
    one, two = recorded.get("library", {}), here.get("library", {})
    rest = [[part for part in library.items() if part[0] != "threads"] for library in (one, two)]
    if rest[0] != rest[1] or "threads" not in one:
        return ""
    return f" Set OMP_NUM_THREADS={one['threads']} to have as many threads."


def note(book: ledger.Ledger, paths: directory.RunPaths, contents: ledger.Contents, info: EngineInfo) -> None:
    """Record in ledger and metrics if rewards are computed differently from here on."""
    before, now, done = contents.arithmetic(), info.arithmetic, contents.generations
    if recorded_arithmetic.same(before, now):
        return
    log.warning(
        "%s: from generation %d on rewards are computed with %s, before with %s",
        *(paths.root, done, recorded_arithmetic.words(now), recorded_arithmetic.words(before)),
    )
    book.append_arithmetic(done, now)
    directory.append_lines(paths.metrics, [run_metrics.products_row(info, done)])


def mend(paths: directory.RunPaths, contents: ledger.Contents) -> None:
    """Repair the files after a kill: drop lines beyond the ledger, and restore lines that only the ledger has."""
    done = contents.generations
    metrics = [row for row in directory.read_lines(paths.metrics) if row["generation"] <= done]
    known = {row["generation"] for row in metrics if "reward" in row}
    metrics += [run_metrics.restored(r) for r in contents.records if r.plan.generation + 1 not in known]
    told = {row["generation"] for row in metrics if "products" in row}
    metrics += [
        run_metrics.restored_products(how, g) for g, how in contents.arithmetics.items() if how and g not in told
    ]
    metrics.sort(key=_place)
    directory.write_lines(paths.metrics, metrics)
    evaluated = any("eval_reward" in row and row["generation"] == done for row in metrics)
    last = {"train": done, "test": done if evaluated else done - 1}
    samples = directory.read_lines(paths.samples)
    directory.write_lines(paths.samples, [r for r in samples if r["generation"] <= last[r["split"]]])


def _place(row: dict[str, Any]) -> tuple[int, int]:
    """Sort by generation: its own line, its evaluation, then changes from there on; the initial products line first."""
    generation = row["generation"]
    if "products" in row:
        return generation, 2 if generation else -1
    return generation, int("eval_reward" in row)
