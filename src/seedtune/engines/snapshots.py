"""Snapshots: the current weights on disk, so that a resume replays less.  A cache; the ledger is the run."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from typing_extensions import TypedDict

from seedtune.config.foreign_data import GenerationCount, conform, parse_json
from seedtune.engines.base import Engine
from seedtune.errors import storage_error
from seedtune.numerics.machine import disk


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A finished snapshot: its folder, the generations its weights have applied, and its fingerprint."""

    folder: Path
    generations: int
    fingerprint: str


class _About(TypedDict):
    """The file ``snapshot.json``."""

    generations: GenerationCount
    fingerprint: str


def save(folder: Path, engine: Engine, *, generations: int, keep: int) -> Snapshot:
    """Write a snapshot and delete all but the newest ``keep``; on StorageError older snapshots remain."""
    target = folder / _name(generations)
    fingerprint = engine.fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder, ignore_cleanup_errors=True) as scratch:
            part = Path(scratch) / "snapshot"
            part.mkdir()
            engine.snapshot(part)
            about = {"generations": generations, "fingerprint": fingerprint}
            (part / "snapshot.json").write_text(json.dumps(about), encoding="utf-8")
            for file in part.iterdir():
                disk.flush_path(file)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
    except (OSError, SafetensorError) as error:
        raise storage_error(target, error, run=folder.parent) from error
    for old in listing(folder)[keep:]:
        shutil.rmtree(old.folder, ignore_errors=True)
    return Snapshot(target, generations, fingerprint)


def listing(folder: Path) -> list[Snapshot]:
    """Return the snapshots of a run, newest first; unfinished ones are skipped."""
    found = []
    for about in folder.glob("[0-9]*/snapshot.json"):
        try:
            data = conform(parse_json(about.read_bytes()), _About)
        except (OSError, ValueError):
            continue
        snapshot = Snapshot(about.parent, **data)
        if about.parent.name == _name(snapshot.generations):
            found.append(snapshot)
    return sorted(found, key=lambda snapshot: -snapshot.generations)


def _name(generations: int) -> str:
    return f"{generations:06d}"


def clear_unfinished(folder: Path) -> None:
    """Remove the unfinished snapshots of a killed process."""
    for leftover in folder.glob(".writing-*"):
        shutil.rmtree(leftover, ignore_errors=True)
