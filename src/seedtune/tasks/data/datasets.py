"""Read the rows of a data set: from a local JSON Lines, JSON, CSV or Parquet file, a folder, or a Hugging Face id."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from seedtune.config.data_and_rewards import DatasetSettings
from seedtune.config.foreign_data import check_size, single_keys
from seedtune.config.paths import id_and_revision
from seedtune.errors import DataError, first_line, suggest
from seedtune.rewards.optional import optional
from seedtune.tasks.data.rows import Rows


def read(settings: DatasetSettings, default_split: str) -> Rows:
    """Return the rows; raise DataError if data are missing or malformed, MissingExtraError if a package is missing."""
    path = Path(settings.path)
    if path.is_file() and not is_data_file(settings.path):
        raise DataError(f"{settings.path!r} ends in none of {', '.join(READERS)}. Convert or rename it.")
    if not path.exists():
        _check_is_of_hub(settings.path)
    if not is_data_file(settings.path):
        return _hugging_face(settings, settings.split or default_split)
    for key in ("name", "split"):
        if getattr(settings, key) is not None:
            raise DataError(
                f"{key}={getattr(settings, key)!r} is for Hugging Face data, but {settings.path!r} is a file."
            )
    rows = READERS[path.suffix.lower()](path)
    if not rows:
        raise DataError(f"{path} is empty. Give at least one row with a prompt.")
    return rows


def is_data_file(path: str) -> bool:
    """Whether a path has the extension of a data file."""
    return Path(path).suffix.lower() in READERS


def _check_is_of_hub(name: str) -> None:
    """Raise DataError, suggesting a data file of the same folder, for a missing path that cannot be a hub's id."""
    path = Path(name)
    others = path.parent.iterdir() if path.suffix and path.parent.is_dir() else ()
    near = suggest(path.name, [other.name for other in others if is_data_file(other.name) and os.path.exists(other)])
    if near or is_data_file(name) or name.startswith((".", "/")) or id_and_revision(name)[0].count("/") > 1:
        raise DataError(f"there is no data file or folder {name!r}. Check the path.{near}")


def _hugging_face(settings: DatasetSettings, split: str) -> Rows:
    library = optional("datasets", f"the data set {settings.path!r}")
    try:
        rows: Rows = _loaded(library, settings, split)
    except Exception as error:  # the named boundary: the library's readers raise many types
        known = _splits(library, settings)
        first = first_line(error).rstrip(".") + "."
        choice = f"{suggest(split, known)} Its splits: {', '.join(known)}." if known and split not in known else ""
        raise DataError(
            f"cannot load the data set {settings.path!r} (name={settings.name}, split={split}): {first}{choice} "
            "Give a file, or a Hugging Face id with its name and split. If this machine has no way to the hub, "
            "download the data elsewhere and give the files (for gsm8k and math: task_args.path and test_path)."
        ) from error
    return rows


def _loaded(library: ModuleType, settings: DatasetSettings, split: str) -> Any:
    folder = Path(settings.path)
    if (folder / "dataset_dict.json").is_file():
        return library.load_from_disk(str(folder))[split]
    if (folder / "state.json").is_file():
        return library.load_from_disk(str(folder))
    place, options = id_and_revision(settings.path)
    return library.load_dataset(place, settings.name, split=split, **options)


def _splits(library: ModuleType, settings: DatasetSettings) -> list[str]:
    """Return the names of a data set's splits for an error message; empty if that fails, too."""
    try:
        place, options = id_and_revision(settings.path)
        return list(library.get_dataset_split_names(place, settings.name, **options))
    except Exception:  # noqa: BLE001 - only a hint in the message of another error
        return []


DataRows = list[dict[str, Any]]

_SPACE = re.compile(r"\s*")


def _json(path: Path) -> DataRows:
    """Read rows one after the other, as in JSON Lines, or one list of rows, whatever the file's name."""
    values = list(_values(_text(path), path))
    alone = values[0][1] if len(values) == 1 else None
    if isinstance(alone, list):
        return [_row(row, f"{path} row {number}") for number, row in enumerate(alone)]
    if alone is not None and path.suffix.lower() == ".json":
        raise DataError(f"{path} holds {_kind(alone)}, not a list of rows. Write [{{…}}, {{…}}], or a .jsonl file.")
    return [_row(value, f"{path} line {line}") for line, value in values]


def _values(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield every JSON value of a text, with the line on which it begins."""
    decoder, text, line, place = json.JSONDecoder(object_pairs_hook=single_keys), text.rstrip(), 1, 0
    while place < len(text):
        found = _SPACE.match(text, place)
        start = found.end() if found else place
        line += text.count("\n", place, start)
        try:
            value, place = decoder.raw_decode(text, start)
            check_size(value, items=len(text) + 1)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {line} is not JSON: {error}. Mend or remove it.") from error
        yield line, value
        line += text.count("\n", start, place)


def _csv(path: Path) -> DataRows:
    """Read CSV; all values are strings, and the first line names the columns."""
    text = _text(path)
    reader, rows = csv.reader(io.StringIO(text, newline=""), strict=True), DataRows()
    usual = csv.field_size_limit(len(text) + 1)  # the module's own limit is 128 KiB
    try:
        names = next(reader, [])
        if len(set(names)) != len(names):
            raise DataError(f"{path} line 1 names a column twice: {', '.join(names)}. Rename one.")
        for values in filter(None, reader):
            if len(values) != len(names):
                raise DataError(
                    f"{path} line {reader.line_num} has {len(values)} values for {len(names)} columns. Mend it."
                )
            rows.append(dict(zip(names, values, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num} is not CSV: {error}. Mend or remove it.") from error
    finally:
        csv.field_size_limit(usual)
    return rows


def _parquet(path: Path) -> DataRows:
    parquet = optional("pyarrow.parquet", f"the Parquet file {path}")
    try:
        rows: DataRows = parquet.read_table(path).to_pylist()
    except Exception as error:  # the named boundary: the library raises many types
        raise DataError(f"{path} cannot be read as Parquet: {first_line(error)}. Save it again.") from error
    return rows


READERS: dict[str, Callable[[Path], DataRows]] = {
    ".jsonl": _json,
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


def _row(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f'{where} holds {_kind(value)}, not an object. Write {{"prompt": …}}.')
    return value


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", type(None): "null"}.get(type(value), type(value).__name__)
