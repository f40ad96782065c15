"""Files of a run directory: JSON lines appended during the run, and whole files written atomically."""

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
    """Append one JSON object per line, after closing a torn last line.  Raises StorageError."""
    data = _lines(rows)
    try:
        with path.open("ab+") as file:
            if file.tell() and not _ends_line(file):
                data = b"\n" + data
            file.write(data)
    except OSError as error:
        raise storage_error(path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read every complete JSON line, skipping torn ones; empty if there is no file."""
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
    """Replace a file's content by these JSON lines, atomically."""
    _write_whole(path, _lines(rows))


def write_whole(path: Path, text: str) -> None:
    """Replace a file's content by this text, atomically."""
    _write_whole(path, text.encode())


def put(path: Path, data: bytes) -> None:
    """Write a file under a hidden name and rename it; on OSError the old file is kept."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _write_whole(path: Path, data: bytes) -> None:
    """Call ``put`` unless the content is unchanged; StorageError says how to resume."""
    try:
        if data != (path.read_bytes() if path.exists() else b""):
            put(path, data)
    except OSError as error:
        raise storage_error(path, error) from error


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Encode JSON lines in UTF-8; a lone surrogate, which UTF-8 cannot encode, stays a JSON escape."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return text.encode("utf-8", "backslashreplace")


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


@dataclass(frozen=True, slots=True)
class RunPaths:
    """Paths of a run directory."""

    root: Path

    @property
    def ledger(self) -> Path:
        """The ledger, which defines the run."""
        return self.root / "ledger.jsonl"

    @property
    def config(self) -> Path:
        """The settings with which the run was started or last resumed."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """One line per generation and per held-out evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Completions of the unperturbed model."""
        return self.root / "samples.jsonl"

    @property
    def evaluations(self) -> Path:
        """One line per ``seedtune eval --save``."""
        return self.root / "evaluations.jsonl"

    @property
    def failures(self) -> Path:
        """Completions on which a reward function failed, if there are any."""
        return self.root / "failures.jsonl"

    @property
    def snapshots(self) -> Path:
        """The current weights at a few generations, for a fast resume."""
        return self.root / "snapshots"

    @property
    def report(self) -> Path:
        """A one-page report, written at the end of the run."""
        return self.root / "report.html"

    def holdings(self) -> set[str]:
        """List the names in the run directory, without hidden (half-written) files; RunError if it is a file."""
        if self.root.exists() and not self.root.is_dir():
            raise RunError(f"the run directory {str(self.root)!r} is a file. Choose another output_dir.")
        entries = self.root.iterdir() if self.root.exists() else ()
        return {entry.name for entry in entries if not entry.name.startswith(".")}

    def check_unused(self) -> None:
        """Raise RunError if the run directory is not empty."""
        if self.holdings():
            hint = f"Resume it with '{resume_command(self.root)}'" if self.config.exists() else "Empty it"
            raise RunError(
                f"the run directory {str(self.root)!r} is already used. {hint}, or choose another output_dir."
            )

    def stopped_at_once(self) -> bool:
        """Return whether the run stopped right after writing its configuration."""
        known = {self.config.name, self.ledger.name}
        return self.config.is_file() and self.holdings() <= known and not ledger.has_begun(self.ledger)
