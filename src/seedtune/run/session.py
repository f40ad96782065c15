"""A run in progress: its directory, its ledger and its engine, begun anew or as an earlier process left them."""

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
"""The open ledger, the strategy's state, and what the loaded engine says about itself."""


class Session:
    """What the trainer has open while a run goes on: the engine at ``generation``, and the run directory."""

    def __init__(self, config: Config, task: Task, strategy: Strategy) -> None:
        self.config, self.task, self.strategy = config, task, strategy
        self.paths = directory.RunPaths(Path(config.output_dir))
        self.engine: Engine | None = None
        self.generation = self.parameters = 0
        self.lineage = Lineage()
        self.replaying: replay.Progress | None = None
        """Told how far the replay of a resumed run is."""

    def load(self) -> Engine:
        """The engine, loaded with the base model if nothing was trained or resumed yet."""
        if self.engine is None:
            engine = engines.create(self.config)
            replay.loaded(engine)
            self.engine = engine
        return self.engine

    def release(self) -> None:
        """Let go of the engine: of its memory, its processes."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    # --------------------------------------------------------- begin and resume

    @contextmanager
    def begun(self) -> Iterator[Start]:
        """A new run: directory, configuration, and a ledger with its header."""
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
        """A run as its ledger has it; one that was stopped before its first line begins."""
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
        """The current weights, and files that agree with the ledger and with the settings the run goes on with."""
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
        """Move the current weights on, or back to what they were."""
        self.lineage.add(record)
        if record.rollback_to is None:
            self.load().apply(self.lineage.last())
        else:
            replay.rebuild(self.load(), self.paths.root, self.lineage)

    def note(self, book: Ledger) -> None:
        """The fingerprint of the current weights into the ledger, every few generations and after the last."""
        if self.generation % self.config.fingerprint_steps == 0 or self.generation == self.config.generations:
            book.append_fingerprint(self.generation, self.load().fingerprint())

    def snapshot_if_due(self) -> None:
        """A snapshot every ``save_steps`` generations and after the last."""
        steps = self.config.save_steps
        due = self.generation == self.config.generations or (steps > 0 and self.generation % steps == 0)
        if due:
            snapshots.save(
                self.paths.snapshots,
                self.load(),
                generations=self.generation,
                keep=self.config.save_total_limit,
            )
