"""Files of a run directory that are written as it goes: JSON lines, and whole files put in place at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from seedtune.errors import storage_error


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
