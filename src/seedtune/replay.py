"""From a run directory back to weights: base model, newest useful snapshot, and the ledger's updates.

Updates are applied in batches, so that an engine may pass over its weights once for several generations; the
bits are those of one update after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedtune import activities, engines, ledger, strategies
from seedtune.config.config import Config
from seedtune.config.yaml_file import read_settings
from seedtune.engines import snapshots
from seedtune.engines.base import Engine, EngineInfo, first_pass
from seedtune.errors import LedgerError, RunError, StorageError, resume_command
from seedtune.lineage import Lineage
from seedtune.numerics import noise
from seedtune.types import Update, __version__

log = logging.getLogger("seedtune")
Progress = Callable[[int, int], None]
"""Called with (updates applied, updates to apply), first with (0, updates to apply)."""

WEIGHTS = ("seed", "perturbation", "rank", "subspaces", "master", "trainable", "freeze", "moments")
"""Settings that the weights depend on, besides the base model, the precision of the centre and the updates."""


@dataclass(slots=True)
class Stopwatch:
    """A progress that passes on what it is told, and keeps how many updates were applied and in what time."""

    inner: Progress | None = None
    updates: int = 0
    seconds: float = 0.0
    _started: float = 0.0

    def __call__(self, done: int, goal: int) -> None:
        """Begins at 0 done."""
        if done == 0:
            self._started = time.perf_counter() - self.seconds
        self.updates, self.seconds = done, time.perf_counter() - self._started
        if self.inner is not None:
            self.inner(done, goal)


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Where a run keeps what."""

    root: Path

    @property
    def ledger(self) -> Path:
        """The run itself."""
        return self.root / "ledger.jsonl"

    @property
    def config(self) -> Path:
        """The settings it was started or last resumed with."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """A line per generation and per held-out evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """What the centre answered."""
        return self.root / "samples.jsonl"

    @property
    def evaluations(self) -> Path:
        """A line per ``seedtune eval --save``."""
        return self.root / "evaluations.jsonl"

    @property
    def failures(self) -> Path:
        """Completions on which a reward function failed, if there are any."""
        return self.root / "failures.jsonl"

    @property
    def snapshots(self) -> Path:
        """The centre at a few generations, for a quick resume."""
        return self.root / "snapshots"

    @property
    def report(self) -> Path:
        """The run on one page, written at the end."""
        return self.root / "report.html"

    def holdings(self) -> set[str]:
        """Names in the run directory, hidden ones (half-written files) left out; RunError if it is a file."""
        if self.root.exists() and not self.root.is_dir():
            raise RunError(f"the run directory {str(self.root)!r} is a file. Choose another output_dir.")
        entries = self.root.iterdir() if self.root.exists() else ()
        return {entry.name for entry in entries if not entry.name.startswith(".")}

    def check_unused(self) -> None:
        """RunError if the run directory holds something already."""
        if self.holdings():
            hint = f"Resume it with '{resume_command(self.root)}'" if self.config.exists() else "Empty it"
            raise RunError(
                f"the run directory {str(self.root)!r} is already used. {hint}, or choose another output_dir."
            )

    def stopped_at_once(self) -> bool:
        """Whether a run got as far as its configuration and no further."""
        known = {self.config.name, self.ledger.name}
        return self.config.is_file() and self.holdings() <= known and not ledger.has_begun(self.ledger)


def how_to_go_on(config: Config) -> str:
    """What to do when a run was stopped and its cause is mended."""
    if config.has_objects:
        return "Nothing is lost: go on with Trainer(...).train(resume=True)."
    return f"Nothing is lost: go on with {resume_command(Path(config.output_dir))}"


def header_of(config: Config, info: EngineInfo, data: str) -> ledger.Header:
    """The ledger header of a run that starts from a loaded engine, on data of that digest."""
    return ledger.Header(
        model=info.model,
        base_fingerprint=info.base_fingerprint,
        config=config.identity(),
        noise=noise.SCHEME,
        version=__version__,
        data=data,
        centre=info.centre,
        arithmetic=info.arithmetic,
    )


def run_config(root: Path) -> Config:
    """The configuration a run was started with; RunError if ``root`` is not a run directory."""
    paths = RunPaths(root)
    if not paths.config.is_file():
        raise RunError(f"{root} is not a run directory: it has no config.yaml. Check the path.")
    # Before there were adaptive steps, all were fixed.
    settings = without_defaults({"step_size": "fixed", **read_settings(paths.config)})
    return Config.create({**settings, "output_dir": str(root)})


def without_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Recorded settings without a default of an older version that means nothing beside the others."""
    how = settings["step_size"]
    adaptive = how == "adaptive" or (how == "auto" and settings.get("alpha") is None)
    return settings if adaptive else {**settings, "longest_step": None}


def check_same_run(root: Path, recorded: ledger.Header, config: Config) -> None:
    """RunError with every setting that differs from the ledger's header."""
    changes = ledger.changed_fields(completed(recorded.config), config.identity())
    if changes:
        raise RunError(
            f"{root} was started with another configuration ({'; '.join(changes)}). "
            "Put the recorded values back, or start a new run in another output_dir."
        )
    check_noise(str(root), recorded.noise)


def check_noise(what: str, scheme: str) -> None:
    """LedgerError if ``what`` draws its noise by another scheme than this version."""
    if scheme != noise.SCHEME:
        raise LedgerError(
            f"{what} uses noise scheme {scheme!r}; this version makes {noise.SCHEME!r}. Use a version that makes it."
        )


def completed(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with the defaults of settings that are younger than the record."""
    kinds = recorded.get("engine", Config().engine).split("+")
    # Before there were adaptive steps, all were fixed.
    young = {**Config.create(evaluating(kinds)).identity(), "step_size": "fixed"}
    sections = {kind: {**young[kind], **recorded.get(kind, {})} for kind in kinds}
    return {**without_defaults({**young, **recorded}), **sections}


def any_of(kinds: Sequence[str]) -> str:
    """The engine that brings weights back where several evaluated."""
    return "transformers" if "transformers" in kinds else kinds[0]


def evaluating(kinds: Sequence[str]) -> dict[str, Any]:
    """Settings by which engines of these kinds evaluate: of one kind it alone, of several a fleet."""
    if len(kinds) == 1:
        return {"engine": kinds[0]}
    return {"engine": "fleet", "fleet": {"workers": dict.fromkeys(kinds, 1)}}


def config_of(recorded: Mapping[str, Any]) -> Config:
    """The configuration of a ledger's header, as far as results depend on it."""
    settings = completed(recorded)
    kinds, lag = settings["engine"].split("+"), settings.pop("lag", 0)
    fleet = {"engine": "fleet", "fleet": {"workers": dict.fromkeys(kinds, 1), "lag": lag}} if lag else {}
    return Config.create({**settings, **evaluating(kinds), **fleet})


def load(
    root: Path,
    config: Config,
    contents: ledger.Contents,
    *,
    generation: int | None = None,
    check: Callable[[EngineInfo], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Engine, EngineInfo]:
    """An engine whose centre has applied ``generation`` generations of the ledger (all of them by default).

    ``check`` sees what was loaded before anything is applied.

    Raises LedgerError when the base model is not the recorded one or a recorded fingerprint does not match; the engine
    is closed then.
    """
    goal = goal_of(root, contents, generation)
    engine, lineage = engines.create(config), lineage_of(config, contents)
    try:
        start, info = _start(engine, RunPaths(root).snapshots, (lineage, contents.fingerprints), goal)
        check_base(root, contents.header, info)
        if check is not None:
            check(info)
        apply(engine, lineage.updates(goal)[start:], progress=progress)
        _check_fingerprint(root, engine, contents, goal)
    except BaseException:
        engine.close()
        raise
    return engine, info


def loaded(engine: Engine) -> EngineInfo:
    """Load the base model; an engine that cannot is closed."""
    try:
        with activities.doing("loading the model"):
            return engine.load()
    except BaseException:
        engine.close()
        raise


def lineage_of(config: Config, contents: ledger.Contents) -> Lineage:
    """Which of a ledger's generations are in the centre."""
    return Lineage(strategies.memory(config), contents.records)


def rebuild(engine: Engine, root: Path, lineage: Lineage) -> None:
    """Bring an engine to where its run's lineage ends, from the newest snapshot on the way."""
    goal = len(lineage.records)
    start, _ = _start(engine, RunPaths(root).snapshots, (lineage, {}), goal)
    apply(engine, lineage.updates(goal)[start:])


def goal_of(root: Path, contents: ledger.Contents, generation: int | None) -> int:
    """``generation``, or all there are; RunError if the run does not have so many."""
    goal = contents.generations if generation is None else generation
    if not 0 <= goal <= contents.generations:
        raise RunError(f"generation {goal} is not in {root}: it has generations 0 to {contents.generations}.")
    return goal


def check_base(root: Path, header: ledger.Header, info: EngineInfo) -> None:
    """LedgerError if a loaded engine does not start from what the run started from."""
    if info.base_fingerprint != header.base_fingerprint:
        raise LedgerError(
            f"{root} was trained from a base model with fingerprint {header.base_fingerprint}, but "
            f"{info.model!r} has {info.base_fingerprint}. Give the same base model."
        )
    if info.centre != header.centre:
        raise LedgerError(f"{root} was trained with a centre of {header.centre}; {other_centre(info)}")


def other_centre(info: EngineInfo) -> str:
    """What to do about a centre of the wrong element type."""
    return (
        f"here it would be {info.centre}, the type of {info.model!r} as it is loaded on {info.device}. "
        "Use a device and settings (transformers.dtype, or the engine of the run) that keep that precision."
    )


def apply(engine: Engine, updates: Sequence[Update], *, progress: Progress | None = None) -> None:
    """Apply all ``updates`` to the centre."""
    for _ in walk(engine, updates, stops=(), progress=progress):
        pass


def walk(
    engine: Engine, updates: Sequence[Update], *, stops: Collection[int], progress: Progress | None = None
) -> Iterator[int]:
    """Apply all ``updates`` in batches, pausing wherever as many as one of ``stops`` says have been applied."""
    done, goal = 0, len(updates)
    _tell(progress, done, goal)
    if done in stops:
        yield done
    while done < goal:
        batch = first_pass(updates, done, min((stop for stop in stops if stop > done), default=goal))
        engine.apply(*batch)
        done += len(batch)
        _tell(progress, done, goal)
        if done in stops:
            yield done


def _tell(progress: Progress | None, done: int, goal: int) -> None:
    if progress is not None:
        progress(done, goal)


def _start(engine: Engine, folder: Path, known: tuple[Lineage, Mapping[int, str]], goal: int) -> tuple[int, EngineInfo]:
    """Load the newest snapshot on the way to ``goal`` that is what it says it is, or the base model."""
    lineage, fingerprints = known
    for candidate in snapshots.listing(folder):
        if candidate.generations > goal or not lineage.reaches(candidate.generations, goal):
            continue
        recorded = fingerprints.get(candidate.generations, candidate.fingerprint)
        try:
            info = engine.load(candidate.folder)
        except StorageError as error:
            log.warning("passing over the snapshot %s: %s", candidate.folder, error)
            continue
        if engine.fingerprint() == candidate.fingerprint == recorded:
            return candidate.generations, info
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
