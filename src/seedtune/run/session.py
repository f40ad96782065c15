"""A run in progress: its directory, ledger and engine, newly created or resumed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from seedtune.config.foreign_data import dump_yaml
from seedtune.engines import snapshots
from seedtune.engines.base import Engine, EngineInfo
from seedtune.errors import ConfigError, RunError, StorageError, storage_cause
from seedtune.numerics import noise
from seedtune.numerics.machine import disk
from seedtune.rollouts import prompts, sigma_search
from seedtune.rollouts.prepare import Prepared
from seedtune.run import directory, metrics, recorded_config, replay, resuming
from seedtune.run.ledger import Contents, Ledger
from seedtune.run.lineage import Lineage
from seedtune.run.records import Header, Record
from seedtune.run.sealing import marked
from seedtune.strategies import sigma_rule
from seedtune.strategies.base import State
from seedtune.strategies.sigma_rule import Measurement
from seedtune.types import __version__


@dataclass(frozen=True, slots=True)
class Start:
    """A run that is ready for its next generation: the open ledger, the strategy's state, and what was loaded."""

    book: Ledger
    state: State
    info: EngineInfo


class Session:
    """The open resources of a run: the engine, at ``generation``, and the run directory."""

    def __init__(self, prepared: Prepared) -> None:
        self.config, self.task = prepared.config, prepared.task
        self.paths = directory.RunPaths(Path(self.config.output_dir))
        self.engine: Engine | None = None
        self.generation = 0
        self.lineage = Lineage()
        self.ends: dict[int, int] = {}
        """Number of generations at an end of the run → number of generations of the model chosen there."""
        self.measured: tuple[Measurement, ...] = ()
        """How σ was found; empty: it was given."""
        self.replaying: replay.Progress | None = None
        """Receives the progress of a resumed run's replay."""

    def load(self) -> Engine:
        """Return the engine, loaded with the base model if nothing was trained or resumed yet."""
        if self.engine is None:
            self.engine, _ = replay.load_base(self.config)
        return self.engine

    def release(self) -> None:
        """Close the engine: free its memory and end its processes."""
        if self.engine is not None:
            self.engine.close()
            self.engine = None

    @property
    def chosen(self) -> int:
        """Number of generations of the model to hand out: all, unless an end of the run chose an earlier one."""
        return self.ends.get(self.generation, self.generation)

    # --------------------------------------------------------- begin and resume

    def resumes(self, checkpoint: bool | str | os.PathLike[str] | None) -> bool:
        """Return whether a run is resumed: ``checkpoint`` is true, or its directory; ConfigError for another one."""
        if checkpoint is None or isinstance(checkpoint, bool):
            return bool(checkpoint)
        if os.path.realpath(checkpoint) != os.path.realpath(self.paths.root):
            raise ConfigError(
                f"resume_from_checkpoint={os.fspath(checkpoint)!r} is not output_dir={str(self.paths.root)!r}: a run "
                "continues in its own directory, after its last generation. Give True and output_dir=RUN; an earlier "
                "model comes from 'seedtune export --generation'."
            )
        return True

    @contextmanager
    def opened(self, *, resume: bool) -> Iterator[Start]:
        """Create a run, or reopen it at the state that its ledger records, if there is one."""
        if not resume:
            self.paths.check_unused()
        with self._begun() if not resume or self.paths.stopped_at_once() else self._resumed() as start:
            yield start

    @contextmanager
    def _begun(self) -> Iterator[Start]:
        """Create a run: directory, configuration, and a ledger with its header."""
        self.release()
        self.generation, self.lineage = 0, Lineage()
        with self._claimed() as book:
            self.engine, info = replay.load_base(self.config)
            measured = self._measure_sigma(self.engine)
            header = self._header(info, measured)  # what can fail comes before the first file
            with self._beginning():
                disk.put(self.paths.config, self._settings())
            book.begin(header)
            directory.append_lines(self.paths.metrics, [metrics.products_row(info, 0)])
            self.measured, self.ends = measured, {}
            yield Start(book, {}, info)

    @contextmanager
    def _claimed(self) -> Iterator[Ledger]:
        """Create and lock the run directory before the model is loaded; if that fails, nothing is left behind."""
        new = not self.paths.root.exists()
        with self._beginning():
            self.paths.root.mkdir(parents=True, exist_ok=True)
        try:
            with Ledger.claimed(self.paths.ledger) as book:
                yield book
        finally:
            with suppress(OSError):  # raised if it is not empty
                if new:
                    self.paths.root.rmdir()

    @contextmanager
    def _beginning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            cause, fix = storage_cause(error)
            raise StorageError(
                f"cannot begin a run in {str(self.paths.root)!r}: {cause}. {fix}, or choose another output_dir."
            ) from error

    def _measure_sigma(self, engine: Engine) -> tuple[Measurement, ...]:
        """Find σ if none was given, and put it into the configuration; return the measurements."""
        if self.config.sigma is not None:
            return ()
        measured = sigma_search.search(engine, self.config, self.task)
        self.config = self.config.replace(sigma=sigma_rule.found(measured))
        return measured

    def _header(self, info: EngineInfo, measured: tuple[Measurement, ...]) -> Header:
        return Header(
            seedtune=__version__,
            noise=noise.SCHEME,
            model=info.model,
            data=self.task.digest(),
            prompts=prompts.digest(self.config, self.task),
            resolved_weights_dtype=info.resolved_weights_dtype,
            arithmetic=info.arithmetic,
            base_fingerprint=info.base_fingerprint,
            tokenizer_fingerprint=info.tokenizer_fingerprint,
            config=self.config.identity(),
            measured=measured,
            sources=self.config.sources(),
        )

    @contextmanager
    def _resumed(self) -> Iterator[Start]:
        """Reopen a run, rebuild its weights, and make its files agree with its ledger and with the new settings."""
        self.release()
        book, contents = Ledger.resume(self.paths.ledger)
        with closing(book):
            self.measured, self.ends = contents.header.measured, dict(contents.ends)
            if self.config.sigma is None and self.measured:
                self.config = self.config.replace(sigma=contents.header.config["sigma"])
            self._check_resumable(contents)
            self.generation, self.lineage = contents.generations, Lineage(contents.records)
            snapshots.clear_unfinished(self.paths.snapshots)
            self.engine, info = resuming.load(self.paths.root, self.config, contents, progress=self.replaying)
            resuming.mend(self.paths, contents)
            directory.write_whole(self.paths.config, self._settings())
            resuming.note(book, self.paths, contents, info)
            if self.generation and self.generation not in contents.fingerprints:
                self.note(book)
            yield Start(book, contents.records[-1].state if contents.records else {}, info)

    def _check_resumable(self, contents: Contents) -> None:
        """Raise RunError or ConfigError if the run cannot go on with these settings and data."""
        root, done = self.paths.root, contents.generations
        recorded_config.check_same_run(root, contents.header, self.config)
        recorded_config.check_state(root, contents)
        if contents.header.data not in (self.task.digest(), self.task.whole_digest()):
            raise RunError(
                f"{root} was started with other training data than task {self.task.name!r} has now. "
                "Give the same ones, or start a new run in another output_dir."
            )
        same_rows = contents.header.data == self.task.digest()
        if same_rows and contents.header.prompts != prompts.digest(self.config, self.task):
            raise RunError(
                f"{root}: the model {self.config.model!r} reads the training prompts as other tokens than at the start "
                "of the run: its tokenizer or chat template has changed. Give the model as it was (a model of the Hub "
                "with its revision: model=ORG/NAME@REVISION), or start a new run in another output_dir."
            )
        if self.config.generations < done:
            raise ConfigError(
                f"generations={self.config.generations}, but {root} has {done} already. Give {done} or more; "
                "earlier models come from 'seedtune export --generation'."
            )

    def _settings(self) -> bytes:
        settings = {**self.config.model_dump(mode="json"), "members_per_job": self.config.group}
        return marked(dump_yaml(settings).encode())

    # ---------------------------------------------------------------- a generation

    def apply(self, record: Record) -> None:
        """Apply a generation's update to the weights, or roll them back."""
        self.lineage.add(record)
        if record.rollback_to is None:
            self.load().apply(self.lineage.last())
        else:
            replay.rebuild(self.load(), self.paths.root, self.lineage)
        self.generation += 1

    def note(self, book: Ledger) -> None:
        """Write the weights' fingerprint to the ledger if it is due."""
        if self.config.due(self.generation, self.config.fingerprint_steps):
            book.note(self.generation, fingerprint=self.load().fingerprint())

    @contextmanager
    def at(self, generation: int | str | None) -> Iterator[tuple[Engine, int]]:
        """Yield the engine with the weights after a generation (see `replay.goal_of`), and the generation's number."""
        goal = replay.goal_of(self.paths.root, self.generation, generation, chosen=self.chosen)
        engine = self.load()
        if goal == self.generation:
            yield engine, goal
            return
        try:
            replay.rebuild(engine, self.paths.root, Lineage(self.lineage.records[:goal]))
            yield engine, goal
        finally:
            replay.rebuild(engine, self.paths.root, self.lineage)

    def end(self, book: Ledger, chosen: int) -> None:
        """Record which generation's model an end of the run hands out."""
        book.note(self.generation, chosen=chosen)
        self.ends[self.generation] = chosen
        if chosen != self.generation:
            directory.append_lines(self.paths.metrics, [{"generation": self.generation, "chosen": chosen}])

    def snapshot_if_due(self, *, asked: bool = False) -> None:
        """Save a snapshot every ``save_steps`` generations, after the last, and if ``asked``."""
        if asked or self.config.due(self.generation, self.config.save_steps):
            snapshots.save(
                self.paths.snapshots, self.load(), generations=self.generation, keep=self.config.save_total_limit
            )
