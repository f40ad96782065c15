"""Environments: the counterpart of a model in conversations of several turns."""

from __future__ import annotations

from seedtune.errors import ConfigError, nearest
from seedtune.rewards.sources import user_code
from seedtune.tasks.environments.base import EnvironmentFactory
from seedtune.tasks.environments.guessing import NumberGuessing

ENVIRONMENTS: dict[str, EnvironmentFactory] = {"number_guessing": NumberGuessing}
"""Built-in environments by name."""


def find(name: str) -> EnvironmentFactory:
    """Return a built-in environment, or the class in ``file.py:Class`` or ``module.Class``; may raise ConfigError."""
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if not {":", "."} & set(name):
        raise ConfigError(
            f"environment={name!r} is not one of ours.{nearest(name, ENVIRONMENTS)} Known: {', '.join(ENVIRONMENTS)}. "
            "Name your own as file.py:Class or module.Class."
        )
    return user_code.load(name, f"environment={name!r}")
