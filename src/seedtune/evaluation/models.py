"""The model to evaluate, opened: a folder, a Hugging Face id, a built-in name, or a run after some generations."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from seedtune.config.config import Config
from seedtune.config.yaml_file import override, read_settings
from seedtune.engines.base import Engine
from seedtune.errors import ConfigError
from seedtune.run import directory, ledger, recorded_config, replay
from seedtune.tasks.base import Task


def is_run(what: str | Path) -> bool:
    """Return whether this is a run directory, as opposed to a model."""
    return os.path.exists(directory.RunPaths(Path(what)).ledger)  # False for a name that is too long for a file


def settings_of(
    what: str | Path, *, file: Path | None = None, sets: Sequence[str] = (), on: Sequence[str | Task] = ()
) -> Config:
    """Return the settings for evaluating ``what``: a run's own, or those of ``file`` (say, RUN/config.yaml).

    ``sets`` override single settings.  Raises ConfigError for an unknown setting, if ``what`` is a run and ``file``
    is given, or if another's run names what only the user may; if it is evaluated ``on`` other tasks than its own, that
    is left out with a warning. `evaluate` raises ConfigError for a change that the weights of a run depend on.
    """
    if not is_run(what):
        named = {"model": str(what)}
        return Config.create({**override({**(_read(file, sets) if file else {}), **named}, sets), **named})
    if file is not None:
        raise ConfigError(f"{what} is a run and has settings of its own: change them one by one, and leave out {file}.")
    root = Path(what)
    read = recorded_config.trusted(root, sets, f"seedtune eval {root}", on=named_tasks(on))
    return recorded_config.with_settings(read, sets)


def named_tasks(on: Sequence[str | Task]) -> list[str | Task]:
    """Return tasks with the names of files made absolute, as configurations have them.  Raises ConfigError."""
    return [Config.create({"task": task}).task if isinstance(task, str) else task for task in on]


def _read(file: Path, sets: Sequence[str]) -> dict[str, Any]:
    """Read a settings file; one that belongs to a run is trusted as little as the run."""
    if file.name != directory.RunPaths(file.parent).config.name or not is_run(file.parent):
        return read_settings(file)
    return recorded_config.trusted(file.parent, sets, f"seedtune eval MODEL --config {file}").model_dump()


@contextmanager
def opened(
    what: str | Path, config: Config, *, generation: int | None = None, progress: replay.Progress | None = None
) -> Iterator[Engine]:
    """Open a model, or a run after ``generation`` generations (all by default); its engine is closed at the end.

    Raises ConfigError, RunError, LedgerError or ModelError.
    """
    contents = ledger_of(what, config)
    if contents is None:
        engine, _ = replay.load_base(config)
    else:
        engine, _ = replay.load(Path(what), config, contents, generation=generation, progress=progress)
    with closing(engine):
        yield engine


def ledger_of(what: str | Path, config: Config) -> ledger.Contents | None:
    """Return the ledger of a run, None for a model.  Raises ConfigError if ``config`` would change a run's weights."""
    if not is_run(what):
        return None
    run = replay.RecordedRun.read(Path(what))
    names = [name for name, _, _ in recorded_config.differences(run.config.model_dump(), config.model_dump())]
    fixed = [name for name in names if name in ("model", *recorded_config.WEIGHTS)]
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: the run's weights depend on it, so an evaluation cannot change it.")
    return run.contents
