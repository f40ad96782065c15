"""Load reward functions from ``file.py:function`` or ``module.function``, with an optional adapter prefix."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from seedtune.errors import ConfigError, RewardError, nearest
from seedtune.rewards.base import RewardFunction
from seedtune.rewards.sources import user_code
from seedtune.rewards.sources.adapters import ADAPTERS, reasoning_gym
from seedtune.rewards.sources.user_code import reach, run_file

Function = Callable[..., Any]
_ADAPTED = re.compile(rf"({'|'.join(ADAPTERS)})(?:=([^@]+))?@(.*)", re.DOTALL)
_EXAMPLE = "Write file.py:function or module.function."


def load(source: str) -> RewardFunction:
    """Load the function named by a ``Reward.source``, with TRL's signature; works in any process.

    Raises ConfigError if the file, module or function does not exist or is not callable, and RewardError if
    importing it raises.
    """
    found = _ADAPTED.fullmatch(source)
    if found is None:
        return load_function(source)
    name, target, path = found.groups()
    if name == "reasoning_gym" and not path:
        return reasoning_gym(None, None)
    return ADAPTERS[name](load_function(path), target)


def load_function(path: str) -> Function:
    """Load the function of ``file.py:function`` or ``module.function`` without an adapter; raises as `load` does."""
    place, names = split(path)
    found: Any = _module_of_file(Path(place)) if is_file(place) else _module(place, path)
    for name in names.split("."):
        found = _attribute(found, name, path)
    if isinstance(found, type) or not callable(found):
        kind = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise ConfigError(
            f"the reward {path!r} is {kind}, not a function. Name a function, or an instance with __call__."
        )
    function: Function = found
    return function


def settled(path: str) -> str:
    """Make the file in ``path`` absolute, so that it does not depend on the working directory."""
    place, names = split(path)
    return f"{os.path.abspath(os.path.expanduser(place))}:{names}" if is_file(place) else path


def split(path: str) -> tuple[str, str]:
    """Split a path into (file or module, attribute names); raise ConfigError if one of them is missing."""
    place, colon, names = path.rpartition(":" if ":" in path else ".")
    if not colon or not place or not all(name.isidentifier() for name in names.split(".")):
        raise ConfigError(f"the reward {path!r} does not name a function in a file or module. {_EXAMPLE}")
    if path.endswith(".py"):
        raise ConfigError(f"the reward {path!r} names a file, but no function in it. Write {path}:function.")
    return place, names


def is_file(place: str) -> bool:
    """Whether ``place`` is a file rather than a module."""
    return place.endswith(".py") or "/" in place or os.sep in place


def _module_of_file(file: Path) -> ModuleType:
    """Run a file once per version of it and return the module; the file may import from its folder."""
    path = Path(os.path.abspath(file.expanduser()))
    if not path.is_file():
        raise ConfigError(f"there is no file {str(file)!r} of rewards. Check the path.{_near(path)}")
    facts = path.stat()
    version = f"{path} {facts.st_mtime_ns} {facts.st_size}"
    name = f"seedtune_reward_{path.stem}_{hashlib.blake2b(version.encode(), digest_size=6).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    return _run(lambda: run_file(path, name), str(file))


def _module(name: str, path: str) -> ModuleType:
    """Import a module; the working directory is searched, too, as in TRL."""
    reach(os.getcwd())
    importlib.invalidate_caches()
    try:
        return _run(lambda: importlib.import_module(name), name)
    except RewardError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and missing.name and f"{name}.".startswith(f"{missing.name}."):
            raise ConfigError(
                f"there is no module {missing.name!r} for the reward {path!r}. Run where it can be imported (the "
                f"working directory is {os.getcwd()!r}), or name a file: file.py:function."
            ) from None
        raise


def _run(what: Callable[[], ModuleType], name: str) -> ModuleType:
    """Run an import; raise RewardError with the line of the user's code that failed."""
    try:
        return what()
    except (Exception, SystemExit) as error:  # the named boundary: user code may raise anything
        raise RewardError(
            f"importing the rewards of {name!r} raised {type(error).__name__}: {error}{_where(error)}. Fix that first."
        ) from error


def _where(error: BaseException) -> str:
    ours = (__file__, user_code.__file__)
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename and f.filename not in ours
    ]
    if isinstance(error, SyntaxError) or not frames:
        return ""
    return f" (line {frames[-1].lineno} of {frames[-1].filename})"


def _attribute(owner: Any, name: str, path: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        known = [other for other in dir(owner) if not other.startswith("_") and callable(getattr(owner, other, None))]
        raise ConfigError(
            f"the reward {path!r}: there is no {name!r} in it.{nearest(name, known)} "
            f"It has: {', '.join(known) or 'no functions'}."
        ) from None


def _near(path: Path) -> str:
    """Suggest the Python file of the same folder with the nearest name."""
    return nearest(path.name, [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else [])
