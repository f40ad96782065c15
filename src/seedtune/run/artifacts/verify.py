"""Verification: base model + ledger = weights, checked at every fingerprint that the run recorded.

Snapshots are not used, so that what is verified is the ledger itself; they may be checked against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines import snapshots
from seedtune.engines.base import Engine
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.engines.snapshots import Snapshot
from seedtune.errors import LedgerError, StorageError
from seedtune.run import directory, ledger, recorded_config, replay
from seedtune.run.artifacts.consistency import Audit, audit
from seedtune.run.lineage import Lineage


@dataclass(frozen=True, slots=True)
class Verification:
    """What was verified; a run that does not verify raises instead."""

    generations: int
    matched: tuple[int, ...]
    """Numbers of generations after which the recorded fingerprint came out again."""

    fingerprint: str
    """Of the weights after all generations."""

    base_fingerprint: str
    audit: Audit
    seconds: float
    """What replay and fingerprints took, loading the base model left out."""

    snapshots: tuple[int, ...] = ()
    torn: int = 0
    """Bytes of an unfinished last line, which is not part of the run."""

    arithmetics: Mapping[int, Entry] = field(default_factory=dict)
    """How rewards were computed, by the generation from which on; the weights do not depend on it."""


def verify_run(
    run: str | Path,
    *,
    model: str | None = None,
    sets: Iterable[str] = (),
    snapshots: bool = False,
    progress: replay.Progress | None = None,
) -> Verification:
    """Replay ``run`` from its base model alone and compare every fingerprint its ledger holds.

    ``model`` says where the base model is now; ``sets`` are ``key=value`` settings that results do not depend on,
    ``engine`` among them (a run of vLLM's is replayed by the transformers engine otherwise); with ``snapshots`` those
    on the disk must hold the replayed weights, too.  Raises LedgerError: a corrupted line, a record that does not
    follow from its rewards, another base model, or the first recorded fingerprint that does not come out.
    """
    root = Path(run)
    contents = ledger.read(directory.RunPaths(root).ledger)
    config = _config(root, contents, model, sets)
    audited = audit(root, config, contents)
    kept = _snapshots(root, contents) if snapshots else []
    engine = engines.create(config)
    with closing(engine):
        with recorded_config.hinting(contents.header.config.get("engine", config.engine), config):
            replay.check_base(root, contents.header, engine.load())
        watch = replay.Stopwatch(progress)
        found = _replayed(root, engine, contents, kept, progress=watch)
        _check_snapshots(engine, kept, found)
    return Verification(
        generations=contents.generations,
        matched=tuple(sorted(contents.fingerprints)),
        fingerprint=found[contents.generations],
        base_fingerprint=contents.header.base_fingerprint,
        audit=audited,
        seconds=watch.seconds,
        snapshots=tuple(sorted(one.generations for one in kept)),
        torn=contents.torn,
        arithmetics=contents.arithmetics,
    )


def _snapshots(root: Path, contents: ledger.Contents) -> list[Snapshot]:
    """Those of generations that the ledger still has."""
    listed = snapshots.listing(directory.RunPaths(root).snapshots)
    return [one for one in listed if one.generations <= contents.generations]


def _config(root: Path, contents: ledger.Contents, model: str | None, sets: Iterable[str]) -> Config:
    """The run's configuration; a ledger that came without its config.yaml says enough."""
    if directory.RunPaths(root).config.is_file():
        config = recorded_config.run_config(root)
    else:
        config = recorded_config.config_of(contents.header.config).replace(model=contents.header.model)
    recorded_config.check_same_run(root, contents.header, config)
    return recorded_config.for_weights(config, sets, model=model)


def _replayed(
    root: Path,
    engine: Engine,
    contents: ledger.Contents,
    kept: list[Snapshot],
    *,
    progress: replay.Progress,
) -> dict[int, str]:
    """Fingerprints by number of generations done; LedgerError where a recorded one is another.

    Generations that a collapse went back on are replayed, too, each branch from the base model.
    """
    stops = {*contents.fingerprints, *(one.generations for one in kept), contents.generations}
    lineage = Lineage(contents.records)
    found: dict[int, str] = {}
    for number, end in enumerate(lineage.ends(contents.generations)):
        here = {done for done in stops if done <= end and lineage.reaches(done, end)}
        if here <= found.keys():
            continue
        if number:
            engine.load()
        branch = _Branch(root, contents, found)
        for done in replay.walk(engine, lineage.updates(end), stops=here, progress=progress):
            branch.reached(done, engine.fingerprint())
        branch.finish()
    return found


@dataclass(slots=True)
class _Branch:
    """The way to one end of the run's lineage: what was found on it, and where it first parted from the ledger."""

    root: Path
    contents: ledger.Contents
    found: dict[int, str]
    parted: int | None = None

    def reached(self, done: int, fingerprint: str) -> None:
        """A stop; LedgerError at the next recorded one after the two parted."""
        self.found[done] = fingerprint
        recorded = self.contents.fingerprints.get(done)
        if recorded is None:
            return
        if self.parted is not None:
            raise _mismatch(self.root, self.contents, self.found, (self.parted, done))
        if recorded != fingerprint:
            self.parted = done

    def finish(self) -> None:
        """LedgerError if they parted at the last stop."""
        if self.parted is not None:
            raise _mismatch(self.root, self.contents, self.found, (self.parted, None))


def _mismatch(
    root: Path, contents: ledger.Contents, found: dict[int, str], place: tuple[int, int | None]
) -> LedgerError:
    """``place``: where replay and ledger part, and the next recorded fingerprint after that, if there is one."""
    parted, after = place
    last = max((done for done in contents.fingerprints if done < parted), default=0)
    told = f"{root} does not verify: after {parted} generations the ledger recorded fingerprint "
    told += f"{contents.fingerprints[parted]}, replay gives {found[parted]}"
    if after is not None and contents.fingerprints[after] == found[after]:
        return LedgerError(
            f"{told}; after {after} generations they agree again. So the updates are right and the recorded "
            f"fingerprint was changed: its line was edited and sealed again."
        )
    before = f"generations {last} to {parted - 1}" if parted - last > 1 else f"generation {last}"
    agree = f"after {last} they agree" if last else "the base model agrees"
    also = "" if after is not None else ", or that the last fingerprint itself was"
    return LedgerError(
        f"{told}; {agree}. Possible causes: the record of {before} was edited and sealed again, rewards and "
        f"coefficients alike{also}; the run was made by another version of seedtune "
        f"({contents.header.version}); or the machine that trained miscomputed. "
        "Compare with a copy of the run: seedtune diff RUN COPY."
    )


def _check_snapshots(engine: Engine, kept: list[Snapshot], found: dict[int, str]) -> None:
    """LedgerError if a snapshot's own weights are not the replayed ones."""
    for one in kept:
        cause = ""
        try:
            engine.load(one.folder)
            holds = engine.fingerprint()
        except StorageError as error:
            cause = f" ({error})"
            holds = "nothing that can be read"
        expected = found[one.generations]
        if not holds == one.fingerprint == expected:
            raise LedgerError(
                f"the ledger verifies, but the snapshot {one.folder} holds {holds}{cause} where replay gives "
                f"{expected}. Delete it: snapshots only save time."
            )
