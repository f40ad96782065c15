"""Verification: base model + ledger = weights, checked at every fingerprint recorded by the run.

Snapshots are not used, so that the ledger itself is verified; they may be checked against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from seedtune import activities, engines
from seedtune.engines import snapshots
from seedtune.engines.base import Engine
from seedtune.engines.snapshots import Snapshot
from seedtune.errors import LedgerError, StorageError
from seedtune.run import directory, ledger, recorded_config, replay
from seedtune.run.artifacts.consistency import Audit, audit
from seedtune.run.lineage import Lineage


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of a successful verification; a failure raises an error instead."""

    contents: ledger.Contents
    """The verified ledger."""

    fingerprint: str
    """Fingerprint of the weights after all generations."""

    audit: Audit
    seconds: float
    """Duration of replay and fingerprints, without loading the base model."""

    snapshots: tuple[int, ...]
    """Generations of the snapshots that hold the replayed weights, if they were checked."""

    @property
    def generations(self) -> int:
        """Number of replayed generations."""
        return self.contents.generations

    @property
    def matched(self) -> tuple[int, ...]:
        """Numbers of generations after which the recorded fingerprint was reproduced."""
        return tuple(sorted(self.contents.fingerprints))


def verify_run(
    run: str | Path,
    *,
    model: str | None = None,
    sets: Iterable[str] = (),
    snapshots: bool = False,
    progress: replay.Progress | None = None,
) -> Verification:
    """Replay ``run`` from its base model alone and compare every fingerprint its ledger holds.

    ``model`` is the present location of the base model; ``sets`` are ``key=value`` settings that results do not depend
    on, including ``engine`` (by default the transformers engine replays a run of vLLM's); with ``snapshots``, the
    snapshots on disk must hold the replayed weights, too.  Raises LedgerError for a corrupted line, a record that does
    not follow from its rewards, another base model, or the first recorded fingerprint that is not reproduced.
    """
    recorded = replay.RecordedRun.read(Path(run))
    root, contents = recorded.root, recorded.contents
    config = recorded_config.for_weights(recorded.config, sets, model=model)
    audited = audit(root, config, contents)
    kept = _snapshots(root, contents) if snapshots else []
    with closing(engines.create(config)) as engine:
        with recorded_config.hinting(contents.header.config["engine"], config):
            with activities.doing("loading the model"):
                info = engine.load()
            replay.check_base(root, contents.header, info)
        watch = replay.Stopwatch(progress)
        found = _replayed(root, engine, contents, kept, progress=watch)
        _check_snapshots(engine, kept, found)
    done = tuple(sorted(snapshot.generations for snapshot in kept))
    return Verification(contents, found[contents.generations], audited, watch.seconds, done)


def _snapshots(root: Path, contents: ledger.Contents) -> list[Snapshot]:
    """List the snapshots of generations that the ledger still has."""
    listed = snapshots.listing(directory.RunPaths(root).snapshots)
    return [snapshot for snapshot in listed if snapshot.generations <= contents.generations]


def _replayed(
    root: Path,
    engine: Engine,
    contents: ledger.Contents,
    kept: list[Snapshot],
    *,
    progress: replay.Progress,
) -> dict[int, str]:
    """Return number of generations → fingerprint; LedgerError if a recorded one differs.

    Generations undone by a rollback are replayed, too, each branch from the base model.
    """
    stops = {*contents.fingerprints, *(snapshot.generations for snapshot in kept), contents.generations}
    lineage = Lineage(contents.records)
    found: dict[int, str] = {}
    for number, end in enumerate(lineage.ends(contents.generations)):
        here = {done for done in stops if done <= end and lineage.reaches(done, end)}
        if here <= found.keys():
            continue
        if number:
            engine.load()
        parted = None
        for done in replay.walk(engine, lineage.updates(end), stops=here, progress=progress):
            found[done] = engine.fingerprint()
            if parted is not None and done in contents.fingerprints:
                raise _mismatch(root, contents, found, parted, after=done)
            if contents.fingerprints.get(done, found[done]) != found[done]:
                parted = done
        if parted is not None:
            raise _mismatch(root, contents, found, parted)
    return found


def _mismatch(
    root: Path, contents: ledger.Contents, found: dict[int, str], parted: int, *, after: int | None = None
) -> LedgerError:
    """Build the error from the first mismatch, and the next recorded fingerprint ``after`` it, if there is one."""
    last = max((done for done in contents.fingerprints if done < parted), default=0)
    message = f"{root} does not verify: after {parted} generations the ledger recorded fingerprint "
    message += f"{contents.fingerprints[parted]}, replay gives {found[parted]}"
    if after is not None and contents.fingerprints[after] == found[after]:
        return LedgerError(
            f"{message}; after {after} generations they agree again. So the updates are right and the recorded "
            f"fingerprint was changed: its line was edited and sealed again."
        )
    before = f"generations {last} to {parted - 1}" if parted - last > 1 else f"generation {last}"
    agree = f"after {last} they agree" if last else "the base model agrees"
    also = "" if after is not None else ", or that the last fingerprint itself was"
    return LedgerError(
        f"{message}; {agree}. Possible causes: the record of {before} was edited and sealed again, rewards and "
        f"coefficients alike{also}; the run was made by another version of seedtune "
        f"({contents.header.seedtune}); or the machine that trained miscomputed. "
        "Compare with a copy of the run: seedtune diff RUN COPY."
    )


def _check_snapshots(engine: Engine, kept: list[Snapshot], found: dict[int, str]) -> None:
    """Raise LedgerError if a snapshot's own weights differ from the replayed ones."""
    for snapshot in kept:
        try:
            engine.load(snapshot.folder)
            holds = engine.fingerprint()
        except StorageError as error:
            holds = f"nothing that can be read ({error})"
        expected = found[snapshot.generations]
        if not holds == snapshot.fingerprint == expected:
            raise LedgerError(
                f"the ledger verifies, but the snapshot {snapshot.folder} holds {holds} where replay gives "
                f"{expected}. Delete it: snapshots only save time."
            )
