"""Questions from a data set of a hub or from local files; nothing of them ships with seedtune."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from seedtune.errors import DataError
from seedtune.rewards.packages import optional
from seedtune.settings import Section

Row = Mapping[str, Any]


class SourceSettings(Section):
    """Where the questions are, and how many are taken."""

    path: str | None = None
    """Training questions: a Hugging Face id, or a local JSONL, JSON or CSV file.  None: the usual data set."""

    test_path: str | None = None
    """Held-out questions, if they are a file of their own."""

    config: str | None = None
    """Configuration of a data set with several."""

    train_size: int = Field(default=0, ge=0)
    """Training questions, the first ones; 0: all."""

    test_size: int = Field(default=0, ge=0)
    """Held-out questions, the first ones; 0: all."""


def rows(settings: SourceSettings, usual: tuple[str, str | None]) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows; a local training file without a ``test_path`` leaves nothing held out."""
    path, config = usual if settings.path is None else (settings.path, settings.config)
    train = _read(path, config, "train")
    if settings.test_path is not None:
        test = _read(settings.test_path, settings.config, "test")
    else:
        test = [] if _is_file(path) else _read(path, config, "test")
    return train[: settings.train_size or None], test[: settings.test_size or None]


def _is_file(path: str) -> bool:
    return Path(path).suffix in (".jsonl", ".json", ".csv")


def _read(path: str, config: str | None, split: str) -> list[Row]:
    if not _is_file(path):
        return _from_hub(path, config, split)
    try:
        return _parsed(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the {split} questions {path!r}: {error}. Check task_args.path.") from error


def _parsed(path: Path) -> list[Row]:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return list(json.loads(text))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _from_hub(name: str, config: str | None, split: str) -> list[Row]:
    datasets = optional("datasets", f"the data set {name!r}")
    try:
        return list(datasets.load_dataset(name, config, split=split))
    except Exception as error:
        raise DataError(
            f"cannot load the {split} split of {name!r}: {' '.join(str(error).split())[:300]}. If this machine has no "
            "way to a hub, download the data elsewhere and give the files: --set task_args.path=train.jsonl "
            "--set task_args.test_path=test.jsonl"
        ) from error


def column(row: Any, name: str, index: int) -> str:
    """A row's text under a name; DataError says what the row has instead."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        held = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(f"question {index} has no text under {name!r} (it holds {held}). Name the column {name!r}.")
    return value


def chat(questions: Iterable[tuple[str, str]], instruction: str) -> list[dict[str, Any]]:
    """(question, answer) pairs as rows with a chat prompt."""
    return [
        {"prompt": [{"role": "user", "content": f"{question.strip()}\n\n{instruction}"}], "answer": answer}
        for question, answer in questions
    ]
