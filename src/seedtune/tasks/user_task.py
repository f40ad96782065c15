"""Tasks from a user's file: ``task: file.py:function``, where the function returns a Task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seedtune.errors import ConfigError, DataError, SeedtuneError
from seedtune.rewards.sources import user_code
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
    function = user_code.load(name, f"task={name!r}")
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
