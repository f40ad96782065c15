"""From a run directory back to weights: base model, newest useful snapshot, and the ledger's updates."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from seedtune import __version__, engines, ledger, noise, snapshot
from seedtune.config import Config, load_config
from seedtune.engines.base import Engine, EngineInfo
from seedtune.errors import LedgerError, RunError
from seedtune.strategies.base import update_of

log = logging.getLogger("seedtune")
Progress = Callable[[int, int], None]
"""Called with (updates applied, updates to apply)."""


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where a run keeps what."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jsonl"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def report(self) -> Path:
        return self.root / "report.html"


def header_of(config: Config, info: EngineInfo) -> ledger.Header:
    """The ledger header of a run that starts from a loaded engine."""
    return ledger.Header(
        model=info.model,
        base_fingerprint=info.base_fingerprint,
        config=config.identity(),
        noise=noise.SCHEME,
        version=__version__,
    )


def run_config(root: Path) -> Config:
    """The configuration a run was started with; RunError if ``root`` is not a run directory."""
    paths = RunPaths(root)
    if not paths.config.is_file():
        raise RunError(f"{root} is not a run directory: it has no config.yaml. Check the path.")
    return load_config(paths.config).replace(output_dir=str(root))


def check_same_run(root: Path, recorded: ledger.Header, config: Config) -> None:
    """RunError with every setting that differs from the ledger's header."""
    changes = ledger.changed_fields(recorded.config, config.identity())
    if changes:
        raise RunError(
            f"{root} was started with another configuration ({'; '.join(changes)}). "
            "Put the recorded values back, or start a new run in another output_dir."
        )
    if recorded.noise != noise.SCHEME:
        raise LedgerError(f"{root} uses noise scheme {recorded.noise!r}; this version makes {noise.SCHEME!r}.")


def load(
    root: Path, config: Config, contents: ledger.Contents, *, generation: int | None = None, progress: Progress | None = None
) -> tuple[Engine, EngineInfo]:
    """An engine whose centre has applied ``generation`` generations of the ledger (all of them by default).

    Raises LedgerError when the base model is not the recorded one or a recorded fingerprint does not match.
    """
    goal = contents.generations if generation is None else generation
    if not 0 <= goal <= contents.generations:
        raise RunError(f"generation {goal} is not in {root}: it has generations 0 to {contents.generations}.")
    engine = engines.create(config)
    start, info = _start(engine, RunPaths(root).snapshots, goal)
    if info.base_fingerprint != contents.header.base_fingerprint:
        raise LedgerError(
            f"{root} was trained from a base model with fingerprint {contents.header.base_fingerprint}, but "
            f"{info.model!r} has {info.base_fingerprint}. Give the same base model."
        )
    for index in range(start, goal):
        record = contents.records[index]
        engine.apply(update_of(record.plan, record.coefficients))
        if progress is not None:
            progress(index + 1 - start, goal - start)
    _check_fingerprint(root, engine, contents, goal)
    return engine, info


def _start(engine: Engine, folder: Path, goal: int) -> tuple[int, EngineInfo]:
    """Load the newest snapshot that is not past ``goal`` and is what it says it is, or the base model."""
    for candidate in snapshot.listing(folder):
        if candidate.generations > goal:
            continue
        try:
            info = engine.load(candidate.folder)
        except (OSError, ValueError) as error:
            log.warning("passing over the snapshot %s: %s", candidate.folder, error)
            continue
        if engine.fingerprint() == candidate.fingerprint:
            return candidate.generations, info
        log.warning("passing over the snapshot %s: its weights are not the ones it was made from", candidate.folder)
    return 0, engine.load()


def _check_fingerprint(root: Path, engine: Engine, contents: ledger.Contents, goal: int) -> None:
    recorded = contents.fingerprints.get(goal)
    if recorded is not None and engine.fingerprint() != recorded:
        raise LedgerError(
            f"{root}: replay gives fingerprint {engine.fingerprint()} after {goal} generations, the ledger recorded "
            f"{recorded}. Delete {root / 'snapshots'} and try again; if it stays, the ledger is not of this model."
        )
