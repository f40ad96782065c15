"""Tasks from a user's file: ``task: file.py:function``, where the function returns a Task; and ``task_args``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ValidationError

from seedtune.config.sections import Section, explain
from seedtune.errors import ConfigError, DataError, SeedtuneError, suggest
from seedtune.rewards.sources import user_code
from seedtune.tasks.base import Task
from seedtune.tasks.data.rows import plain
from seedtune.types import Example

S = TypeVar("S", bound=Section)
PREFIX = "task_args."


def validated(section: type[S], given: Mapping[str, Any]) -> S:
    """Return the validated ``task_args``; raise ConfigError with the wrong setting, its value and the nearest name."""
    try:
        return section.model_validate(given)
    except ValidationError as error:
        messages = [explain(e, section, PREFIX) for e in error.errors()]
        raise ConfigError("; ".join(line.removeprefix(PREFIX + "=") for line in messages)) from None


def from_file(name: str, given: Mapping[str, Any]) -> Task:
    """Return the task that ``function(**given)`` of ``file.py:function`` creates.

    The file is run once per version of it, as an import would: read data and seed random numbers inside the function.
    Its path is relative to the current folder.  Raises ConfigError if the file, the function, its arguments or the type
    of its result are wrong, and DataError if the function raises.
    """
    function = user_code.load(name, f"task={name!r}")
    _check_arguments(function, given)
    try:
        made = function(**given)
    except SeedtuneError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"task={name!r} raised {type(error).__name__}: {error}. Fix the function.") from error
    if not isinstance(made, Task):
        raise ConfigError(f"task={name!r} returned {type(made).__name__}, not a seedtune.tasks.Task.")
    given_rows: tuple[Any, ...] = (*made.train, *made.test)
    wrong = {type(row).__name__ for row in given_rows if not isinstance(row, Example)}
    if wrong:
        raise ConfigError(f"task={name!r} has rows of type {', '.join(sorted(wrong))}, not seedtune.types.Example.")
    train, test = ([plain(row, split) for row in rows] for rows, split in ((made.train, "train"), (made.test, "eval")))
    return replace(made, train=train, test=test)


def _check_arguments(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raise ConfigError if ``given`` holds unknown keywords of a function, or lacks required ones."""
    parameters = inspect.signature(function).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    unknown = [] if open_ended else [name for name in given if name not in parameters]
    if unknown:
        raise ConfigError(
            f"unknown setting {PREFIX + unknown[0]!r}.{suggest(unknown[0], parameters)} {function.__name__} takes: "
            f"{', '.join(parameters) or 'none'}"
        )
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = [name for name in required if name not in given]
    if missing:
        raise ConfigError(
            f"{function.__name__} needs {', '.join(PREFIX + name for name in missing)}. "
            f"Give it, for example --set {PREFIX}{missing[0]}=1, or give the parameter a default."
        )
