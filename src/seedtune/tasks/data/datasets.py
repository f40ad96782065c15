"""Read the rows of a data set from a local file, a folder, or a Hugging Face id."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from seedtune.config.data_and_rewards import DatasetSettings
from seedtune.errors import DataError, MissingExtraError, nearest
from seedtune.tasks.data import files
from seedtune.tasks.data.rows import Rows


def read(settings: DatasetSettings, default_split: str) -> Rows:
    """Return the rows; raise DataError if data are missing or malformed, MissingExtraError if a package is missing."""
    path = Path(settings.path).expanduser()
    if path.suffix.lower() in files.READERS:
        _only_of_hub(settings)
        return files.read(path)
    if path.is_file():
        raise DataError(f"{settings.path!r} ends in none of {', '.join(files.READERS)}. Convert or rename it.")
    if _is_place(settings.path) and not path.is_dir():
        raise DataError(f"there is no data file or folder {settings.path!r}. Check the path.")
    if not path.is_dir() and (near := _near(path)):
        raise DataError(f"there is no data file {settings.path!r}.{near}")
    return _hugging_face(settings, settings.split or default_split)


def _near(path: Path) -> str:
    """Suggest a data file of the same folder for a misspelt name."""
    if not path.suffix or not path.parent.is_dir():
        return ""
    return nearest(path.name, [file.name for file in path.parent.iterdir() if file.suffix.lower() in files.READERS])


def settled(settings: DatasetSettings) -> DatasetSettings:
    """Return the settings with the path of local data made absolute."""
    path = os.path.abspath(os.path.expanduser(settings.path))
    return settings.model_copy(update={"path": path}) if os.path.exists(path) else settings


def _is_place(path: str) -> bool:
    return path.startswith((".", "~", "/")) or path.count("/") > 1


def _only_of_hub(settings: DatasetSettings) -> None:
    for key in ("name", "split"):
        if getattr(settings, key) is not None:
            raise DataError(
                f"{key}={getattr(settings, key)!r} is for Hugging Face data, but {settings.path!r} is a file."
            )


def _hugging_face(settings: DatasetSettings, split: str) -> Rows:
    library = _library(settings.path)
    try:
        found = _loaded(library, settings, split)
    except Exception as error:  # the named boundary: the library's readers raise many types
        known = _splits(library, settings)
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        choice = f"{nearest(split, known)} Its splits: {', '.join(known)}." if known and split not in known else ""
        raise DataError(
            f"cannot load the data set {settings.path!r} (name={settings.name}, split={split}): {first}{choice} "
            "Give a file, or a Hugging Face id with its name and split."
        ) from error
    rows: Rows = found
    return rows


def _loaded(library: Any, settings: DatasetSettings, split: str) -> Any:
    folder = Path(settings.path).expanduser()
    saved = folder / "dataset_dict.json"
    if saved.is_file():
        return library.load_from_disk(str(folder))[split]
    if (folder / "state.json").is_file():
        return library.load_from_disk(str(folder))
    return library.load_dataset(str(folder) if folder.is_dir() else settings.path, settings.name, split=split)


def _splits(library: Any, settings: DatasetSettings) -> list[str]:
    """Return the names of a data set's splits for an error message; empty if that fails, too."""
    try:
        return list(library.get_dataset_split_names(settings.path, settings.name))
    except Exception:  # noqa: BLE001 - only a hint in the message of another error
        return []


def _library(path: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(f"the data set {path!r}", "pip install datasets") from error
    return datasets
