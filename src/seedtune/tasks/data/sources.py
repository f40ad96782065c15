"""Read questions from a Hugging Face data set or local files; seedtune ships none of these data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from seedtune.config.data_and_rewards import DatasetSettings
from seedtune.config.sections import Section
from seedtune.errors import DataError
from seedtune.tasks.data import datasets, files

Row = Mapping[str, Any]


class SourceSettings(Section):
    """Source and number of the questions."""

    path: str | None = None
    """Training questions: a Hugging Face id, or a local JSONL, JSON, CSV or Parquet file.  None: the usual data set."""

    test_path: str | None = None
    """Held-out questions, if they are in a separate file."""

    config: str | None = None
    """Configuration name of a data set that has several."""

    train_size: int = Field(default=0, ge=0)
    """Use the first so many training questions; 0: all."""

    test_size: int = Field(default=0, ge=0)
    """Use the first so many held-out questions; 0: all."""


def rows(settings: SourceSettings, usual: tuple[str, str | None]) -> tuple[list[Row], list[Row]]:
    """Return training and held-out rows; a local training file without a ``test_path`` has no held-out rows.

    ``usual`` is (Hugging Face id, configuration) of the default data set.  Raises DataError.
    """
    path, config = usual if settings.path is None else (settings.path, settings.config)
    train = _read(path, config, "train")
    if settings.test_path is not None:
        test = _read(settings.test_path, settings.config, "test")
    else:
        test = [] if _is_file(path) else _read(path, config, "test")
    return train[: settings.train_size or None], test[: settings.test_size or None]


def _is_file(path: str) -> bool:
    return Path(path).suffix.lower() in files.READERS


def _read(path: str, config: str | None, split: str) -> list[Row]:
    local = _is_file(path)
    try:
        return list(datasets.read(DatasetSettings(path=path, name=None if local else config), split))
    except DataError as error:
        if local:
            raise
        raise DataError(
            f"{error} If this machine has no way to a hub, download the data elsewhere and give the files: "
            "--set task_args.path=train.jsonl --set task_args.test_path=test.jsonl"
        ) from error


def column(row: Any, name: str, index: int) -> str:
    """Return the text in a column of a row; raise DataError, listing the columns, if it is missing or blank."""
    value = row.get(name) if isinstance(row, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        held = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(f"question {index} has no text under {name!r} (it holds {held}). Name the column {name!r}.")
    return value


def chat(questions: Iterable[tuple[str, str]], instruction: str) -> list[dict[str, Any]]:
    """Convert (question, answer) pairs to rows with a chat prompt."""
    return [
        {"prompt": [{"role": "user", "content": f"{question.strip()}\n\n{instruction}"}], "answer": answer}
        for question, answer in questions
    ]
