"""A run in progress: its directory, ledger and engine, newly created or resumed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import yaml

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines import snapshots
from seedtune.engines.base import Engine, EngineInfo
from seedtune.errors import ConfigError, RunError, StorageError, storage_cause
from seedtune.run import directory, ledger, metrics, recorded_config, replay, resuming
from seedtune.run.ledger import Ledger, Record
from seedtune.run.lineage import Lineage
from seedtune.strategies.base import State, Strategy
from seedtune.tasks.base import Task

Start = tuple[Ledger, State, EngineInfo]
"""The open ledger, the strategy's state, and the loaded engine's `EngineInfo`."""


class Session:
    """The open resources of a run: the engine, at ``generation``, and the run directory."""

    def __init__(self, config: Config, task: Task, strategy: Strategy) -> None:
        self.config, self.task, self.strategy = config, task, strategy
        self.paths = directory.RunPaths(Path(config.output_dir))
        self.engine: Engine | None = None
        self.generation = self.parameters = 0
        self.lineage = Lineage()
        self.replaying: replay.Progress | None = None
        """Receives the progress of a resumed run's replay."""

    def load(self) -> Engine:
        """Return the engine, loaded with the base model if nothing was trained or resumed yet."""
        if self.engine is None:
            engine = engines.create(self.config)
            replay.loaded(engine)
            self.engine = engine
        return self.engine

    def release(self) -> None:
        """Close the engine: free its memory and end its processes."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    # --------------------------------------------------------- begin and resume

    @contextmanager
    def begun(self) -> Iterator[Start]:
        """Create a run: directory, configuration, and a ledger with its header."""
        self.paths.check_unused()
        yield from self._begin()

    def _begin(self) -> Iterator[Start]:
        self.release()
        engine, self.generation = engines.create(self.config), 0
        self.lineage = Lineage()
        info = replay.loaded(engine)
        self.parameters = info.coverage.perturbed
        self.engine = engine
        try:
            self.paths.root.mkdir(parents=True, exist_ok=True)
            directory.put(self.paths.config, self._settings().encode())
        except OSError as error:
            cause, fix = storage_cause(error)
            raise StorageError(
                f"cannot begin a run in {str(self.paths.root)!r}: {cause}. {fix}, or choose another output_dir."
            ) from error
        header = recorded_config.header_of(self.config, info, self.task.digest())
        with closing(Ledger.create(self.paths.ledger, header)) as book:
            directory.append_lines(self.paths.metrics, [metrics.products_row(info, 0)])
            yield book, self.strategy.initial(), info

    @contextmanager
    def resumed(self) -> Iterator[Start]:
        """Reopen a run at the state its ledger records; create it if it stopped before the ledger's header."""
        if self.paths.stopped_at_once():
            yield from self._begin()
            return
        self.release()
        book, contents = Ledger.resume(self.paths.ledger)
        with closing(book):
            info = self._rebuild(contents)
            resuming.note(book, self.paths, contents, info)
            self.parameters = info.coverage.perturbed
            if self.generation and self.generation not in contents.fingerprints:
                self.note(book)
            yield book, contents.records[-1].state if contents.records else self.strategy.initial(), info

    def _rebuild(self, contents: ledger.Contents) -> EngineInfo:
        """Rebuild the weights from the ledger, and make the run's files agree with it and with the new settings."""
        root, done = self.paths.root, contents.generations
        recorded_config.check_same_run(root, contents.header, self.config)
        if contents.header.data != self.task.digest():
            raise RunError(
                f"{root} was started with other training data than task {self.task.name!r} has now. "
                "Give the same ones, or start a new run in another output_dir."
            )
        if self.config.generations < done:
            raise ConfigError(
                f"generations={self.config.generations}, but {root} has {done} already. Give {done} or more; "
                "earlier models come from 'seedtune export --generation'."
            )
        self.generation, self.lineage = done, Lineage(contents.records)
        snapshots.clear_unfinished(self.paths.snapshots)
        self.engine, info = resuming.load(root, self.config, contents, progress=self.replaying)
        resuming.mend(self.paths, contents)
        directory.write_whole(self.paths.config, self._settings())
        return info

    def _settings(self) -> str:
        settings = {**self.config.model_dump(mode="json"), "members_per_job": self.config.group}
        text: str = yaml.safe_dump(settings, sort_keys=False)
        return text

    # ---------------------------------------------------------------- a generation

    def apply(self, record: Record) -> None:
        """Apply a generation's update to the weights, or roll them back."""
        self.lineage.add(record)
        if record.rollback_to is None:
            self.load().apply(self.lineage.last())
        else:
            replay.rebuild(self.load(), self.paths.root, self.lineage)

    def note(self, book: Ledger) -> None:
        """Write the weights' fingerprint to the ledger every ``fingerprint_steps`` generations and after the last."""
        if self.generation % self.config.fingerprint_steps == 0 or self.generation == self.config.generations:
            book.append_fingerprint(self.generation, self.load().fingerprint())

    def snapshot_if_due(self) -> None:
        """Save a snapshot every ``save_steps`` generations and after the last."""
        steps = self.config.save_steps
        due = self.generation == self.config.generations or (steps > 0 and self.generation % steps == 0)
        if due:
            snapshots.save(
                self.paths.snapshots,
                self.load(),
                generations=self.generation,
                keep=self.config.save_total_limit,
            )
