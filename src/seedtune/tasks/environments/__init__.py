"""Environments: the counterpart of a model in conversations of several turns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from seedtune.errors import ConfigError, nearest
from seedtune.rewards.sources.user_code import _module
from seedtune.tasks.environments.base import EnvironmentFactory
from seedtune.tasks.environments.guessing import NumberGuessing

ENVIRONMENTS: dict[str, EnvironmentFactory] = {"number_guessing": NumberGuessing}
"""Built-in environments by name."""


def find(name: str) -> EnvironmentFactory:
    """Return a built-in environment, or the class in ``file.py:Class`` or ``module.Class``; may raise ConfigError."""
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    place, _, attribute = name.rpartition(":" if ":" in name else ".")
    if not place:
        raise ConfigError(
            f"environment={name!r} is not one of ours.{nearest(name, ENVIRONMENTS)} Known: {', '.join(ENVIRONMENTS)}. "
            "Name your own as file.py:Class or module.Class."
        )
    module = _module(place, name)
    found: Any = getattr(module, attribute, None)
    if not isinstance(found, Callable):  # type: ignore[arg-type]
        raise ConfigError(f"environment={name!r}: there is no class {attribute!r} in {place}. Check the name.")
    factory: EnvironmentFactory = found
    return factory
