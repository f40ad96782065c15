"""The protocol of trackers, and the numbers that they receive."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as trackers see it."""

    name: str
    """The same after a resume, so that the tracker's run continues."""

    folder: Path
    parameters: Row
    """The configuration with dotted names, and what was loaded."""


class Tracker(Protocol):
    """One tracker.  Every method may raise anything: `Reporting` then leaves the tracker out."""

    def start(self, run: TrackedRun) -> None:
        """Open the tracker's run, or continue it."""

    def log(self, metrics: Row, step: int) -> None:
        """Log a line of metrics.jsonl, of a generation or an evaluation after ``step`` generations."""

    def table(self, rows: Sequence[Row], step: int) -> None:
        """Log the completions of a generation."""

    def finish(self, complete: bool) -> None:
        """Close the tracker's run; ``complete`` is False if an error or the user ended it."""


def numbers(metrics: Row) -> dict[str, float]:
    """Return the finite numbers of a line of metrics, without the step itself."""
    named = {name: value for name, value in metrics.items() if type(value) in (int, float) and name != "generation"}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def prefixed(metrics: Row) -> dict[str, float]:
    """Return the numbers under the names that TRL's runs have in trackers: ``train/reward``, ``eval/reward``."""
    return {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in numbers(metrics).items()
    }
