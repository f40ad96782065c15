"""Read rows of local files: JSON, JSON Lines, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seedtune.errors import DataError, MissingExtraError, nearest

DataRow = dict[str, Any]


def read(path: Path) -> list[DataRow]:
    """Return all rows of a data file; raise DataError with the file, and the line if one is malformed."""
    if not path.is_file():
        others = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no data file {str(path)!r}. Check the path.{nearest(path.name, others)}")
    rows = READERS[path.suffix.lower()](path)
    if not rows:
        raise DataError(f"{path} is empty. Give at least one row with a prompt.")
    return rows


def _jsonl(path: Path) -> list[DataRow]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            rows.append(_row(_parsed(line, f"{path} line {number}"), f"{path} line {number}"))
    return rows


def _json(path: Path) -> list[DataRow]:
    text = _text(path)
    whole = _parsed(text, str(path)) if text.strip() else []
    if not isinstance(whole, list):
        raise DataError(f"{path} holds {_kind(whole)}, not a list of rows. Write [{{…}}, {{…}}], or a .jsonl file.")
    return [_row(row, f"{path} row {number}") for number, row in enumerate(whole)]


def _csv(path: Path) -> list[DataRow]:
    """Read CSV; all values are strings, and the first line names the columns."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[DataRow] = []
    try:
        names = next(reader, [])
        if len(set(names)) != len(names):
            raise DataError(f"{path} line 1 names a column twice: {', '.join(names)}. Rename one.")
        for values in reader:
            if len(values) != len(names) and values:
                raise DataError(f"{path} line {reader.line_num} has {len(values)} values for {len(names)} columns.")
            if values:
                rows.append(dict(zip(names, values, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num} is not CSV: {error}. Mend or remove it.") from error
    return rows


def _parquet(path: Path) -> list[DataRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(f"the Parquet file {path}", "pip install pyarrow") from error
    try:
        rows: list[DataRow] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {next(iter(str(error).splitlines()), '')}") from error
    return rows


READERS: dict[str, Callable[[Path], list[DataRow]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
}
"""Readers by file extension."""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path} line {line} is not UTF-8: {error.reason}. Save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}. Check the file.") from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON: {error}. Mend or remove it.") from error


def _row(value: Any, where: str) -> DataRow:
    if not isinstance(value, dict):
        raise DataError(f'{where} holds {_kind(value)}, not an object. Write {{"prompt": …}}.')
    return value


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)
