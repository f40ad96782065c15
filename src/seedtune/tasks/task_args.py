"""Validate the settings of a task (``task_args`` of a configuration) like the configuration itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from seedtune.config.sections import Section, explain
from seedtune.errors import ConfigError, nearest

S = TypeVar("S", bound=Section)
PREFIX = "task_args."


def validated(section: type[S], given: Mapping[str, Any]) -> S:
    """Return the validated settings; raise ConfigError with the wrong setting, its value and the nearest known name."""
    try:
        return section.model_validate(given)
    except ValidationError as error:
        told = [explain(e, section, PREFIX) for e in error.errors()]
        raise ConfigError("; ".join(line.removeprefix(PREFIX + "=") for line in told)) from None


def accepted(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``given`` as keyword arguments of a user's function; raise ConfigError for unknown or missing ones."""
    parameters = inspect.signature(function).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in given:
        if name not in parameters and not open_ended:
            known = ", ".join(parameters) or "none"
            raise ConfigError(
                f"unknown setting {PREFIX + name!r}.{nearest(name, parameters)} {function.__name__} takes: {known}"
            )
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = [name for name in required if name not in given]
    if missing:
        raise ConfigError(
            f"{function.__name__} needs {', '.join(PREFIX + name for name in missing)}. "
            f"Give it, for example --set {PREFIX}{missing[0]}=1, or give the parameter a default."
        )
    return dict(given)
