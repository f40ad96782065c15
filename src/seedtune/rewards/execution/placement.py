"""Decide where a reward function runs: in the main thread, another thread, or a worker process that reloads it."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from seedtune.rewards.base import Reward, RewardFunction
from seedtune.rewards.sources.user_code import MODULES

OURS = "seedtune."
"""Module prefix of seedtune's own functions: without a ``source`` they are quick and cannot hang."""

FIX = "put it into a file of its own and import it from there, or give it as file.py:function"
"""The fix suggested for a function that a worker process cannot load."""


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
    if reward.inline:
        return Placement("thread")
    if reward.source is not None:
        return Placement("worker", reward.source) if workers else Placement("thread")
    source, why = source_of(reward.function)
    if source is not None and source.startswith(OURS):
        return Placement("here")
    if not workers:
        return Placement("thread")
    return Placement("thread", note=why) if source is None else Placement("worker", source)


def source_of(function: RewardFunction) -> tuple[str | None, str]:
    """Return (import path of a function, "") or (None, why another process cannot import it)."""
    if not inspect.isfunction(function):
        return None, f"is an object of this process: {FIX}"
    module = sys.modules.get(function.__module__)
    if module is None or _lookup(module, function.__qualname__) is not function:
        return None, f"is a lambda or a function inside another: {FIX}"
    file = getattr(module, "__file__", None)
    if file is not None and function.__module__.startswith(MODULES):
        return f"{Path(file).resolve()}:{function.__qualname__}", ""
    if function.__module__ != "__main__":
        return f"{function.__module__}:{function.__qualname__}", ""
    if file is None:
        return None, f"is of a notebook or a prompt: {FIX}"
    if not _guarded(Path(file)):
        return None, f'is of a script without `if __name__ == "__main__":`, which a worker would run again: {FIX}'
    return f"{file}:{function.__qualname__}", ""


def _lookup(module: ModuleType, qualname: str) -> Any:
    found: Any = module
    for piece in qualname.split("."):
        found = getattr(found, piece, None)
    return found


def _guarded(script: Path) -> bool:
    """Whether a script has an ``if __name__ == "__main__":`` guard and can be imported without running."""
    try:
        body = ast.parse(script.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return False
    tests = [ast.unparse(step.test) for step in body if isinstance(step, ast.If)]
    return any(test in ("__name__ == '__main__'", "'__main__' == __name__") for test in tests)
