"""Decide where a reward function runs: in the main thread, another thread, or a worker process that reloads it."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal

from seedtune.rewards.base import Reward, RewardFunction
from seedtune.rewards.execution.call import names
from seedtune.rewards.sources.user_code import MODULES

OURS = "seedtune."
"""Module prefix of seedtune's own functions: without a ``source`` they are quick and cannot hang."""


@dataclass(frozen=True, slots=True)
class Placement:
    """``here``: the main thread; ``thread``: another thread; ``worker``: a process that loads ``source``.

    ``note`` says why a function cannot run in a worker process.
    """

    where: Literal["here", "thread", "worker"]
    source: str = ""
    note: str | None = None


def place_of(reward: Reward, workers: int) -> Placement:
    """Return where a reward runs, given the number of worker processes."""
    ours = str(getattr(reward.function, "__module__", "")).startswith(OURS)
    if reward.inline or (ours and names(reward.function, "environments")):
        return Placement("thread")
    place = _place_of(reward.function) if reward.source is None else Placement("worker", reward.source)
    if reward.source is None and place.source.startswith(OURS):
        return Placement("here")
    return place if workers else Placement("thread")


def _place_of(function: RewardFunction) -> Placement:
    """Return a worker that imports the function, or a thread and why another process cannot import it."""
    if not inspect.isfunction(function):
        return _thread("is an object of this process")
    module, name = function.__module__, function.__qualname__
    try:
        found = attrgetter(name)(sys.modules[module])
    except (KeyError, AttributeError):
        found = None
    if found is not function:
        return _thread("is a lambda or a function inside another")
    file = getattr(sys.modules[module], "__file__", None)
    if module != "__main__":
        return Placement("worker", f"{file if module.startswith(MODULES) else module}:{name}")
    if file is None:
        return _thread("is of a notebook or a prompt")
    if not _guarded(Path(file)):
        return _thread('is of a script without `if __name__ == "__main__":`, which a worker would run again')
    return Placement("worker", f"{file}:{name}")


def _thread(why: str) -> Placement:
    fix = "put it into a file of its own and import it from there, or give it as file.py:function"
    return Placement("thread", note=f"{why}: {fix}")


def _guarded(script: Path) -> bool:
    """Whether a script has an ``if __name__ == "__main__":`` guard and can be imported without running."""
    try:
        body = ast.parse(script.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    tests = [ast.unparse(step.test) for step in body if isinstance(step, ast.If)]
    return any(test in ("__name__ == '__main__'", "'__main__' == __name__") for test in tests)
