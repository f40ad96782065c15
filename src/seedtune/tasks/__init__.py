"""Tasks bring prompts and rewards."""

from __future__ import annotations

from collections.abc import Callable

from seedtune.errors import ConfigError, nearest
from seedtune.tasks.base import Task
from seedtune.tasks.conciseness import conciseness
from seedtune.tasks.toy import toy

TASKS: dict[str, Callable[[], Task]] = {"conciseness": conciseness, "toy": toy}
"""Every built-in task by name."""


def create(name: str) -> Task:
    """A built-in task; ConfigError with the nearest name if there is none."""
    if name not in TASKS:
        raise ConfigError(f"task={name!r} is not a built-in task.{nearest(name, TASKS)} Known: {', '.join(TASKS)}")
    return TASKS[name]()
