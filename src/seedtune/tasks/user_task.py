"""Tasks from a user's file: ``task: file.py:function``, where the function returns a Task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from seedtune.errors import ConfigError, DataError, SeedtuneError, nearest
from seedtune.rewards.sources.user_code import run_file
from seedtune.tasks.base import Task
from seedtune.tasks.task_args import accepted


def is_userfile(name: str) -> bool:
    """Whether a task's name has the form ``file.py:function``."""
    return name.rpartition(":")[0].endswith(".py")


def from_file(name: str, given: Mapping[str, Any]) -> Task:
    """Return the task that ``function(**given)`` of ``file.py:function`` creates.

    The file is run, as an import would; its path is relative to the current folder.  Raises ConfigError if the file,
    the function, its arguments or the type of its result are wrong, and DataError if the function raises.
    """
    path, _, word = name.rpartition(":")
    function = _function(_module(Path(path)), word, name)
    keywords = accepted(function, given)
    try:
        made = function(**keywords)
    except SeedtuneError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"task={name!r} raised {type(error).__name__}: {error}. Fix the function.") from error
    if not isinstance(made, Task):
        raise ConfigError(f"task={name!r} returned {type(made).__name__}, not a seedtune.tasks.Task.")
    return made


def _module(path: Path) -> ModuleType:
    path = path.expanduser()
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r} in {Path.cwd()}. Give its path from there, or a full one.")
    try:
        return run_file(path, f"seedtune_task_{path.stem}")
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}. Fix the file.") from error


def _function(module: ModuleType, word: str, name: str) -> Callable[..., Any]:
    own = {key: value for key, value in vars(module).items() if callable(value) and not key.startswith("_")}
    if word not in own:
        raise ConfigError(f"task={name!r}: the file has no function {word!r}.{nearest(word, own)}")
    function: Callable[..., Any] = own[word]
    return function
