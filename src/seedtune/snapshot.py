"""Snapshots: the centre on disk, so that a resume replays fewer generations.  A cache; the ledger is the run."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from seedtune.engines.base import Engine
from seedtune.errors import StorageError
from seedtune.ledger import storage_message


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A finished snapshot: its folder, the generations its centre has applied, and that centre's fingerprint."""

    folder: Path
    generations: int
    fingerprint: str


def save(folder: Path, engine: Engine, *, generations: int, keep: int) -> Snapshot:
    """Write a snapshot and delete all but the newest ``keep``; StorageError leaves the older ones alone."""
    target = folder / f"{generations:06d}"
    fingerprint = engine.fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder, ignore_cleanup_errors=True) as scratch:
            part = Path(scratch) / "snapshot"
            part.mkdir()
            engine.snapshot(part)
            about = {"generations": generations, "fingerprint": fingerprint}
            (part / "snapshot.json").write_text(json.dumps(about), encoding="utf-8")
            _sync(part)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
    except OSError as error:
        raise StorageError(storage_message(folder, error)) from error
    for old in listing(folder)[keep:]:
        shutil.rmtree(old.folder, ignore_errors=True)
    return Snapshot(target, generations, fingerprint)


def listing(folder: Path) -> list[Snapshot]:
    """The snapshots of a run, newest first; unfinished ones are passed over."""
    found = []
    for about in folder.glob("[0-9]*/snapshot.json"):
        try:
            data = json.loads(about.read_text(encoding="utf-8"))
            found.append(Snapshot(about.parent, int(data["generations"]), str(data["fingerprint"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda snapshot: -snapshot.generations)


def clear_unfinished(folder: Path) -> None:
    """Remove what a killed process left half written."""
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Flush every file of ``folder`` to the disk before it gets its name."""
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
