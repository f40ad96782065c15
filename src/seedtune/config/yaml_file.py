"""Read configurations from YAML files, with ``key=value`` overrides from the command line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seedtune.config.config import Config
from seedtune.config.fields import one_spelling
from seedtune.config.foreign_data import parse_yaml
from seedtune.errors import ConfigError


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply ``key=value`` overrides (dotted keys address sections); raises ConfigError."""
    return Config.create(read_settings(path, overrides))


def read_settings(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings of a YAML file with overrides, not yet validated; raise ConfigError if it is unreadable."""
    return override(parse_settings(read_file(path), path), overrides)


def read_file(path: Path) -> bytes:
    """Return the bytes of a configuration file; raise ConfigError if it is unreadable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}. Check the path.") from error


def parse_settings(data: bytes, path: Path) -> dict[str, Any]:
    """Parse the bytes of the YAML file ``path``; raise ConfigError if they are not settings."""
    try:
        settings = parse_yaml(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}. Check the path.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}. Mend it.") from error
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds {type(settings).__name__}, not settings. Write lines like 'sigma: 0.006'.")
    return settings


def override(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``settings`` with every ``a.b=value`` applied, values parsed as YAML; raises ConfigError."""
    result, steps = one_spelling(settings), dict[str, Any]()
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item!r} is not of the form key=value, for example --set sigma=0.006")
        path, value = key.strip().split("."), parse_value(text)
        _assign(steps if path[0] in ("alpha", "learning_rate") else result, path, value, item)
    return {**result, **one_spelling(steps)}


def parse_value(text: str) -> Any:
    """Parse a YAML value; ``1e-3`` and ``1e9``, strings in YAML, are parsed as numbers."""
    try:
        value = parse_yaml(text)
    except ValueError:
        return text
    try:
        number = float(value) if isinstance(value, str) else math.nan
    except ValueError:
        return value
    if math.isnan(number):
        return value
    return int(number) if number.is_integer() else number


def _assign(settings: dict[str, Any], path: list[str], value: Any, item: str) -> None:
    for key in path[:-1]:
        section = settings.get(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {item!r}: {key} is a value, not a section.")
        settings[key] = dict(section)
        settings = settings[key]
    settings[path[-1]] = value
