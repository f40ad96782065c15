"""Files of a run directory that are written as it goes: JSON lines, and whole files put in place at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seedtune.errors import StorageError
from seedtune.ledger import storage_message


def append_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append one JSON object a line; a torn line before it is closed first."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with path.open("ab+") as file:
            if file.tell() and not _ends_line(file):
                text = "\n" + text
            file.write(text.encode())
    except OSError as error:
        raise StorageError(storage_message(path, error)) from error


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete JSON line; none if there is no file.  Torn lines are passed over."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name and rename it, so that it is never half there."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise StorageError(storage_message(path, error)) from error
