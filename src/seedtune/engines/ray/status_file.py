"""Two small files in the run directory: the workers' status (for ``seedtune ray status``), and the requested count."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from seedtune.config.foreign_data import conform, parse_json
from seedtune.errors import RunError, StorageError, storage_cause
from seedtune.numerics.machine import disk

STATUS, SCALE = ".ray-status.json", ".ray-scale.json"


class _Worker(TypedDict):
    """State of a worker, for display."""

    name: str
    state: str
    host: str | None
    pid: int | None
    position: int
    jobs: int
    busy: float
    at_it: float | None


class _Status(TypedDict):
    """State of a run's workers, for display."""

    time: float
    target: Annotated[dict[str, int], Field(min_length=1)]
    min_workers: int
    position: int
    queued: int
    open: int
    lost: int
    workers: list[_Worker]
    notes: list[str]


def show(root: Path, status: Mapping[str, Any]) -> None:
    """Write the state of the workers; a full disk costs the status, not the run."""
    with suppress(OSError):
        _put(root / STATUS, status)


def take_requested(root: Path) -> dict[str, int]:
    """Return the number of workers of each kind that a user requested since the last call; empty: no request."""
    file = root / SCALE
    try:
        requested = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return {str(kind): int(count) for kind, count in requested.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def clear(root: Path) -> None:
    """Delete both files when workers have gone or just started: requests for earlier workers do not count."""
    for name in (STATUS, SCALE):
        (root / name).unlink(missing_ok=True)


def status_of(root: Path) -> dict[str, Any]:
    """Return the status that the driver of a run wrote last; RunError if the run has no Ray workers."""
    try:
        return dict(conform(parse_json((root / STATUS).read_bytes()), _Status))
    except OSError:
        raise RunError(f"no Ray workers are at {root}: it has no {STATUS}. Start one with engine=ray.") from None
    except ValueError as error:
        raise RunError(f"{root / STATUS} is damaged: {error}. The process of the run writes it anew.") from None


def ask(root: Path, requested: Mapping[str, int]) -> None:
    """Request a number of workers of each kind from the driver of a run; StorageError if that cannot be written."""
    try:
        _put(root / SCALE, requested)
    except OSError as error:
        cause, fix = storage_cause(error)
        raise StorageError(f"cannot write {root / SCALE}: {cause}. {fix}.") from error


def _put(file: Path, data: Mapping[str, Any]) -> None:
    disk.put(file, json.dumps(dict(data)).encode())
