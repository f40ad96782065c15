"""Read configurations from YAML files, with ``key=value`` overrides from the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from seedtune.config.config import Config
from seedtune.config.data_and_rewards import as_dataset
from seedtune.config.fields import one_spelling
from seedtune.config.foreign_data import parse_scalar, parse_yaml
from seedtune.config.sections import section_in, types_in
from seedtune.errors import ConfigError

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\']|\'\')*\'', re.DOTALL)
_EXACT = 2.0**53
"""Whole numbers up to here are exact in float64."""


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
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}. Mend it.") from error
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds {type(settings).__name__}, not settings. Write lines like 'sigma: 0.006'.")
    return settings


def override(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return ``settings`` with every ``a.b=value`` applied, each value read as its setting's type; raises ConfigError.

    A setting that takes text takes it as it is, without the quotes around it; other values are YAML.
    """
    result, steps = one_spelling(settings), dict[str, Any]()
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item!r} is not of the form key=value, for example --set sigma=0.006")
        path = key.strip().split(".")
        value = _unquoted(text) if _takes_text(path, text) else parse_value(text)
        _assign(steps if path[0] in ("alpha", "learning_rate") else result, path, value, item)
    return {**result, **one_spelling(steps)}


def _takes_text(path: list[str], text: str) -> bool:
    """Return whether a setting takes nothing but text, or no value (``null``), or several texts that this is not."""
    section: type[BaseModel] | None = Config
    annotation: Any = None
    for key in path:
        field = None if section is None else section.model_fields.get(key)
        annotation = None if field is None else field.annotation
        section = section_in(annotation)
    types = {type(kind) if isinstance(kind, str) else kind for kind in types_in(annotation)}
    if not types <= {str, type(None), Ellipsis}:
        return False
    if text.startswith("{") and any(get_origin(part) is dict for part in get_args(annotation)):
        return False
    return text != "null" if type(None) in types else Ellipsis not in types or not text.startswith("[")


def _unquoted(text: str) -> str:
    """Return what YAML reads in text that is in quotes as a whole; other text as it is."""
    with suppress(ValueError):
        return str(parse_yaml(text)) if _QUOTED.fullmatch(text) else text
    return text


def parse_value(text: str) -> Any:
    """Parse a value of the command line: a list or mapping in brackets, quoted text, or what is left as one scalar.

    Whole numbers with an exponent, such as ``1e3``, are integers.
    """
    if text.lstrip().startswith(("[", "{", '"', "'")):
        with suppress(ValueError):
            return parse_yaml(text)
    value = parse_scalar(text)
    whole = isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT
    return int(value) if whole and "e" in text.lower() else value


def _assign(settings: dict[str, Any], path: list[str], value: Any, item: str) -> None:
    for key in path[:-1]:
        section = settings.get(key, {})
        section = as_dataset(section) if key in ("train_dataset", "eval_dataset") else section
        if not isinstance(section, dict):
            raise ConfigError(f"--set {item!r}: {key} is a value, not a section. Leave one out.")
        settings[key] = dict(section)
        settings = settings[key]
    settings[path[-1]] = value


def dotted(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings by the names that `override` takes, such as ``transformers.device``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping) and value
        found |= dotted(value, f"{before}{name}.") if inner else {f"{before}{name}": value}
    return found
