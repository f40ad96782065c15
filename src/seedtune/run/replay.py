"""Replay: rebuild a run's weights from the base model, the newest usable snapshot and the ledger's updates.

Updates are applied in batches, so that an engine can traverse its weights once for several generations; the result is
bit for bit that of one update after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from seedtune import activities, engines
from seedtune.config import trusted_settings
from seedtune.config.config import Config
from seedtune.engines import snapshots
from seedtune.engines.base import Engine, EngineInfo, passes
from seedtune.errors import LedgerError, RunError, StorageError
from seedtune.run import ledger, metrics, recorded_config
from seedtune.run.directory import RunPaths, read_lines
from seedtune.run.lineage import Lineage
from seedtune.run.records import Header
from seedtune.types import Update

log = logging.getLogger("seedtune")
Progress = Callable[[int, int], None]
"""Callback with (updates applied, updates to apply), first called with (0, updates to apply)."""


@dataclass(slots=True)
class Stopwatch:
    """A progress callback that counts the applied updates, measures their time, and forwards its calls to ``inner``."""

    inner: Progress | None = None
    updates: int = 0
    seconds: float = 0.0
    _started: float = 0.0

    def __call__(self, done: int, goal: int) -> None:
        """Start the clock at ``done`` = 0."""
        if done == 0:
            self._started = time.perf_counter() - self.seconds
        self.updates, self.seconds = done, time.perf_counter() - self._started
        if self.inner is not None:
            self.inner(done, goal)


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run directory's settings and ledger."""

    root: Path
    config: Config
    contents: ledger.Contents

    @classmethod
    def read(cls, root: Path) -> RecordedRun:
        """Read a run; a ledger alone is enough.  Raises RunError, or LedgerError for a corrupted line."""
        contents = ledger.read(RunPaths(root).ledger)
        config, is_own = recorded_config.config_of(contents.header), False
        if RunPaths(root).config.is_file():
            config, is_own = recorded_config.as_written(root)
        recorded_config.check_same_run(root, contents.header, config)
        return cls(root, config if is_own else trusted_settings.without(config), contents)

    @contextmanager
    def weights(self, config: Config, generation: int, progress: Progress | None = None) -> Iterator[Engine]:
        """Open an engine of these settings with the weights after this many generations, see `load`."""
        with recorded_config.hinting(self.config.engine, config):
            engine, _ = load(self.root, config, self.contents, generation=generation, progress=progress)
        with closing(engine):
            yield engine


def goal_of(root: Path, done: int, generation: int | str | None, *, chosen: int) -> int:
    """Return the number of generations that a run's user asks for: by default the ``chosen`` ones of all ``done``.

    Text is ``last``, ``best``, ``best:METRIC`` or ``lowest:METRIC``, see `metrics.best_generation`.  Raises RunError if
    the run has fewer generations or no such metric, ConfigError for other text.
    """
    if generation is None and chosen != done:
        reason = "it was the best one evaluated" if chosen else "none was clearly better than the base model"
        log.warning(
            "%s: the model after generation %d of %d is taken, because %s; generation 'last' gives the last one",
            *(root, chosen, done, reason),
        )
    if isinstance(generation, str) and generation != "last":
        rows = [row for row in read_lines(RunPaths(root).metrics) if row["generation"] <= done]
        return metrics.best_generation(rows, generation)
    goal = chosen if generation is None else done if generation == "last" else int(generation)
    if not 0 <= goal <= done:
        raise RunError(f"generation {goal} is not in {root}: it has generations 0 to {done}.")
    return goal


def load(
    root: Path,
    config: Config,
    contents: ledger.Contents,
    *,
    generation: int | None = None,
    check: Callable[[EngineInfo], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Engine, EngineInfo]:
    """Create an engine with the weights after ``generation`` generations of the ledger (all of them by default).

    ``check``, of those who train on, is called with the loaded engine's information before any update is applied; then
    the tokenizer must be the recorded one, too.

    Raises LedgerError if the base model is not the recorded one or a recorded fingerprint does not match; the engine is
    then closed.  Raises RunError if there are fewer generations.
    """
    done = contents.generations
    goal = goal_of(root, done, generation, chosen=done)
    lineage = Lineage(contents.records)
    with _closed_on_error(engines.create(config)) as engine:
        with activities.doing("loading the model"):
            start, info = _start(engine, RunPaths(root).snapshots, lineage, goal, recorded=contents.fingerprints)
        check_base(root, contents.header, info, trains=check is not None)
        if check is not None:
            check(info)
        apply(engine, lineage.updates(goal)[start:], progress=progress)
        _check_fingerprint(root, engine, contents, goal)
    return engine, info


def load_base(config: Config) -> tuple[Engine, EngineInfo]:
    """Create an engine with the base model."""
    with _closed_on_error(engines.create(config)) as engine, activities.doing("loading the model"):
        return engine, engine.load()


@contextmanager
def _closed_on_error(engine: Engine) -> Iterator[Engine]:
    try:
        yield engine
    except BaseException:
        engine.close()
        raise


def rebuild(engine: Engine, root: Path, lineage: Lineage) -> None:
    """Bring an engine to the end of its run's lineage, from the newest snapshot on the way."""
    goal = len(lineage.records)
    start, _ = _start(engine, RunPaths(root).snapshots, lineage, goal, recorded={})
    apply(engine, lineage.updates(goal)[start:])


def check_base(root: Path, header: Header, info: EngineInfo, *, trains: bool = False) -> None:
    """Raise LedgerError if a loaded engine has another base model or weights dtype than the run.

    Another tokenizer gives the same weights: it is an error only of one that ``trains`` on, else a warning.
    """
    if info.base_fingerprint != header.base_fingerprint:
        raise LedgerError(
            f"{root} was trained from a base model with fingerprint {header.base_fingerprint}, but "
            f"{info.model!r} has {info.base_fingerprint}. Give the same base model."
        )
    if info.resolved_weights_dtype != header.resolved_weights_dtype:
        raise LedgerError(
            f"{root} was trained with weights in {header.resolved_weights_dtype}; {other_weights_dtype(info)}"
        )
    if info.tokenizer_fingerprint != header.tokenizer_fingerprint:
        message = (
            f"{root} was trained with another tokenizer or chat template ({header.tokenizer_fingerprint}) than "
            f"{info.model!r} has ({info.tokenizer_fingerprint}). Give the base model's own, as it was."
        )
        if trains:
            raise LedgerError(message)
        log.warning("%s The weights are the same; prompts are read otherwise.", message)


def other_weights_dtype(info: EngineInfo) -> str:
    """Say how to fix a wrong dtype of the weights."""
    return (
        f"here it would be {info.resolved_weights_dtype}, the type of {info.model!r} as it is loaded on {info.device}. "
        "Use a device and settings (dtype, or the engine of the run) that keep that precision."
    )


def apply(engine: Engine, updates: Sequence[Update], *, progress: Progress | None = None) -> None:
    """Apply all ``updates`` to the current weights."""
    for _ in walk(engine, updates, stops=(), progress=progress):
        pass


def walk(
    engine: Engine, updates: Sequence[Update], *, stops: Collection[int], progress: Progress | None = None
) -> Iterator[int]:
    """Apply all ``updates`` in batches, yielding the number applied at each of ``stops``."""
    done, goal = 0, len(updates)
    for batch in ((), *passes(updates, stops)):  # the empty one reports the start
        if batch:
            engine.apply(*batch)
        done += len(batch)
        if progress is not None:
            progress(done, goal)
        if done in stops:
            yield done


def _start(
    engine: Engine, folder: Path, lineage: Lineage, goal: int, *, recorded: Mapping[int, str]
) -> tuple[int, EngineInfo]:
    """Load the newest snapshot on the way to ``goal`` whose fingerprint matches, or the base model."""
    for candidate in snapshots.listing(folder):
        done = candidate.generations
        if done > goal or not lineage.reaches(done, goal):
            continue
        try:
            info = engine.load(candidate.folder)
        except StorageError as error:
            log.warning("passing over the snapshot %s: %s", candidate.folder, error)
            continue
        if engine.fingerprint() == candidate.fingerprint == recorded.get(done, candidate.fingerprint):
            return done, info
        log.warning("passing over the snapshot %s: its weights are not the ones it was made from", candidate.folder)
    return 0, engine.load()


def _check_fingerprint(root: Path, engine: Engine, contents: ledger.Contents, goal: int) -> None:
    recorded = contents.fingerprints.get(goal)
    if recorded is not None and engine.fingerprint() != recorded:
        raise LedgerError(
            f"{root}: replay gives fingerprint {engine.fingerprint()} after {goal} generations, the ledger "
            f"recorded {recorded}. Delete {root / 'snapshots'} and try again; if it stays, the ledger is "
            "not of this model."
        )
