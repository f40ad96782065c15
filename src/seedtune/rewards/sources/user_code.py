"""Locate and run the files of a user's code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

from seedtune.errors import ConfigError


def place_settled(name: str) -> str:
    """Make the file path in a task's or environment's ``file.py:NAME`` absolute; return other names unchanged."""
    place, colon, word = name.rpartition(":")
    return f"{os.path.abspath(os.path.expanduser(place))}:{word}" if colon and place.endswith(".py") else name


def reach(folder: str) -> None:
    """Append a folder to ``sys.path``."""
    if folder not in sys.path:
        sys.path.append(folder)


def run_file(path: Path, name: str) -> ModuleType:
    """Run a file as the module ``name``, as an import would; exceptions of the file propagate.

    The file may import its neighbours.  Dataclasses look up their module by name, so it is registered first.
    """
    reach(str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(name, path, loader=_Fresh(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


class _Fresh(SourceFileLoader):
    """Loader that always compiles the current source and writes no ``__pycache__`` next to the user's file."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


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
