"""Environments are what a model talks to for several turns."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from seedtune.environments.base import EnvironmentFactory
from seedtune.environments.number_guessing import NumberGuessing
from seedtune.errors import ConfigError, nearest
from seedtune.rewards.sources.user_code import reach, run_file

ENVIRONMENTS: dict[str, EnvironmentFactory] = {"number_guessing": NumberGuessing}
"""Every shipped environment by name."""


def find(name: str) -> EnvironmentFactory:
    """A shipped environment, or the class in ``file.py:Class`` or ``module.Class``; ConfigError if there is none."""
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


def _module(place: str, name: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            reach(os.getcwd())
            importlib.invalidate_caches()
            return importlib.import_module(place)
        path = Path(place).expanduser().resolve()
        return run_file(path, f"seedtune_environment_{path.stem}")
    except (Exception, SystemExit) as error:  # the named boundary: importing runs the user's code
        raise ConfigError(
            f"environment={name!r} cannot be imported from {place}: {type(error).__name__}: {error}. Check the path."
        ) from error
