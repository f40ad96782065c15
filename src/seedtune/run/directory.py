"""Files of a run directory: JSON lines appended during the run, and whole files written atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from seedtune.config.foreign_data import GenerationCount, conform, parse_json
from seedtune.errors import RunError, resume_command, storage_error
from seedtune.numerics.machine import disk
from seedtune.run import ledger


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON object per line, after closing a torn last line.  Raises StorageError."""
    data = _lines(rows)
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW  # another's run may hold a link to a user's file
        with os.fdopen(os.open(path, flags, 0o666), "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                data = data if file.read(1) == b"\n" else b"\n" + data
            file.write(data)
    except OSError as error:
        raise storage_error(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read every line that is whole and of its file's form, and skip others; empty if there is no file."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        with suppress(ValueError):
            row = conform(parse_json(line), dict[str, Any])
            _FORMS.get(path.name, dict)(row)
            rows.append(row)
    return rows


class _Message(TypedDict):
    role: NotRequired[str]
    content: Any


class _SampleLine(TypedDict):
    """A completion of the unperturbed model."""

    generation: GenerationCount
    split: Literal["train", "test"]
    prompt_id: int
    prompt: str | Annotated[list[_Message], Field(min_length=1)]
    completion: str
    reward: float | None
    right: NotRequired[bool | None]
    finish: NotRequired[str]


class _MetricsLine(TypedDict):
    """Metrics of a generation or an evaluation, besides numbers."""

    generation: GenerationCount
    alarms: NotRequired[list[str]]
    products: NotRequired[str]
    arithmetic: NotRequired[dict[str, Any]]
    restored: NotRequired[bool]


class _EstimateLine(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    value: float | None
    low: NotRequired[float | None]
    high: NotRequired[float | None]


class _ResultLine(TypedDict):
    task: str
    prompts: int
    wording: str
    measures: dict[str, _EstimateLine]


class _SubjectLine(TypedDict):
    name: str
    results: Annotated[list[_ResultLine], Field(min_length=1)]


class _EvaluationLine(TypedDict):
    """A ``seedtune eval --save``."""

    subjects: Annotated[list[_SubjectLine], Field(min_length=1)]


def _check_metrics(row: dict[str, Any]) -> None:
    named = conform(row, _MetricsLine)
    conform({name: value for name, value in row.items() if name not in named}, dict[str, float | None])


_FORMS: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "metrics.jsonl": _check_metrics,
    "samples.jsonl": lambda row: conform(row, _SampleLine),
    "evaluations.jsonl": lambda row: conform(row, _EvaluationLine),
}
"""Name of a file of a run → raises ValueError for a line of another form.  These files are caches: the ledger is the
run, and what a damaged line held is restored from it, or missing."""


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file's content by these JSON lines, atomically."""
    write_whole(path, _lines(rows))


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file's content atomically, unless it is unchanged.  Raises StorageError."""
    try:
        if data != (path.read_bytes() if path.exists() else b""):
            disk.put(path, data)
    except OSError as error:
        raise storage_error(path, error) from error


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Encode JSON lines in UTF-8; a lone surrogate, which UTF-8 cannot encode, stays a JSON escape."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "backslashreplace")


class RunPaths:
    """Paths of a run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger = root / "ledger.jsonl"  # defines the run
        self.config = root / "config.yaml"  # the settings with which the run was started or last resumed
        self.metrics = root / "metrics.jsonl"  # one line per generation and per held-out evaluation
        self.samples = root / "samples.jsonl"  # completions of the unperturbed model
        self.evaluations = root / "evaluations.jsonl"  # one line per ``seedtune eval --save``
        self.failures = root / "failures.jsonl"  # completions on which a reward function failed, if there are any
        self.snapshots = root / "snapshots"  # the current weights at a few generations, for a fast resume
        self.completions = root / "completions"  # with log_completions, a Parquet file per generation
        self.tracked_as = root / "tracked_as.txt"  # name of the run in trackers, if it reports to any
        self.report = root / "report.html"  # one page, written at the end of the run

    def holdings(self) -> set[str]:
        """List the names in the run directory, without hidden (half-written) files; RunError if it is a file."""
        if self.root.exists() and not self.root.is_dir():
            raise RunError(f"the run directory {str(self.root)!r} is a file. Choose another output_dir.")
        entries = self.root.iterdir() if self.root.exists() else ()
        return {entry.name for entry in entries if not entry.name.startswith(".")}

    def check_unused(self) -> None:
        """Raise RunError if the run directory is not empty."""
        begun = self.config.exists() or ledger.has_begun(self.ledger)  # else a process was killed, or is loading
        if self.holdings() - (set() if begun else {self.ledger.name}):
            hint = f"Resume it with '{resume_command(self.root)}'" if self.config.exists() else "Empty it"
            raise RunError(
                f"the run directory {str(self.root)!r} is already used. {hint}, or choose another output_dir."
            )

    def stopped_at_once(self) -> bool:
        """Return whether the run stopped right after writing its configuration."""
        known = {self.config.name, self.ledger.name}
        return self.config.is_file() and self.holdings() <= known and not ledger.has_begun(self.ledger)
