"""Files of a run directory that are written as it goes: JSON lines, and whole files put in place at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedtune.errors import RunError, resume_command, storage_error
from seedtune.run import ledger


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON object a line; a torn line before it is closed first."""
    data = _lines(rows)
    try:
        with path.open("ab+") as file:
            if file.tell() and not _ends_line(file):
                data = b"\n" + data
            file.write(data)
    except OSError as error:
        raise storage_error(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete JSON line; none if there is no file.  Torn lines are passed over."""
    rows = []
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Make a file hold exactly these JSON lines."""
    _write_whole(path, _lines(rows))


def write_whole(path: Path, text: str) -> None:
    """Make a file hold exactly this text."""
    _write_whole(path, text.encode())


def put(path: Path, data: bytes) -> None:
    """Write a file under another, hidden name and rename it; OSError leaves the old one."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _write_whole(path: Path, data: bytes) -> None:
    """``put`` unless nothing would change; StorageError says how to resume."""
    try:
        if data != (path.read_bytes() if path.exists() else b""):
            put(path, data)
    except OSError as error:
        raise storage_error(path, error) from error


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON lines in UTF-8; a lone surrogate, which UTF-8 cannot hold, stays a JSON escape."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "backslashreplace")


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


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
        """What the unperturbed model answered."""
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
        """The current weights at a few generations, for a quick resume."""
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
