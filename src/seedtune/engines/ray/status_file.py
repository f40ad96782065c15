"""Two small files in the run directory: how the fleet is (for ``seedtune fleet status``), and how large it is to be."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedtune.errors import RunError, StorageError, storage_cause

STATUS, WISH = ".fleet.json", ".fleet-scale.json"
EVERY = 1.0
"""Seconds between two looks."""


class Board:
    """The driver's side.  A disk that is full costs the picture, not the run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._next = 0.0

    def due(self, now: float) -> bool:
        """Whether it is time to look again."""
        if now < self._next or not self.root.is_dir():
            return False
        self._next = now + EVERY
        return True

    def show(self, status: Mapping[str, Any]) -> None:
        """Write how the fleet is."""
        try:
            _put(self.root / STATUS, status)
        except OSError:
            return

    def wish(self) -> dict[str, int] | None:
        """How many workers of each kind somebody asked for since the last look."""
        file = self.root / WISH
        try:
            wished = json.loads(file.read_text(encoding="utf-8"))
            file.unlink()
            return {str(kind): int(count) for kind, count in wished.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def clear(self) -> None:
        """The fleet is gone, or has just come: what was wished of another is of no account."""
        for name in (STATUS, WISH):
            (self.root / name).unlink(missing_ok=True)


def status_of(root: Path) -> dict[str, Any]:
    """What the driver of a run wrote last; RunError if no fleet is at it."""
    try:
        found: dict[str, Any] = json.loads((root / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunError(f"no fleet is at {root}: it has no {STATUS}. Start one with engine=fleet.") from None
    return found


def ask(root: Path, wished: Mapping[str, int]) -> None:
    """Ask the driver of a run for so many workers of each kind."""
    try:
        _put(root / WISH, wished)
    except OSError as error:
        cause, fix = storage_cause(error)
        raise StorageError(f"cannot write {root / WISH}: {cause}. {fix}.") from error


def _put(file: Path, data: Mapping[str, Any]) -> None:
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_text(json.dumps(dict(data)), encoding="utf-8")
    part.replace(file)
