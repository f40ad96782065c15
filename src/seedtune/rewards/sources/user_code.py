"""Load a user's functions and classes from ``file.py:NAME`` or ``module.NAME``."""

from __future__ import annotations

import builtins
import hashlib
import importlib
import os
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from seedtune.config.paths import is_file
from seedtune.errors import ConfigError, suggest

MODULES = f"{__name__}."
"""Name prefix of modules that were run from a file.

``MODULES + digest`` is the package of a folder's files.  Such a name imports this module, whose finder knows the rest:
processes that user code spawns find the functions and classes that are sent to them.
"""

__path__: list[str] = []
"""Makes this module the parent of those packages."""


def load(name: str, label: str) -> Callable[..., Any]:
    """Return the function or class at ``file.py:NAME``, ``module.NAME`` or ``module:NAME``; works in any process.

    A file is run once per version of it, and may import its neighbours; modules are searched in the working directory,
    too, as in TRL.  Raises ConfigError, which begins with ``label``, if the file, the module or the name does not exist
    or importing it raises.
    """
    place, colon, words = name.rpartition(":" if ":" in name else ".")
    if not colon or not place or not all(word.isidentifier() for word in words.split(".")):
        raise ConfigError(f"{label} does not name a function in a file or module. Write file.py:NAME or module.NAME.")
    if name.endswith(".py"):
        raise ConfigError(f"{label} names a file, but nothing in it. Write {name}:NAME.")
    found: Any = _imported(place, label)
    for word in words.split("."):
        found = _attribute(found, word, label)
    if not callable(found):
        raise ConfigError(f"{label} is of type {type(found).__name__}, not a function or class. Name one.")
    function: Callable[..., Any] = found
    return function


def _imported(place: str, label: str) -> ModuleType:
    path, of_file = Path(os.path.abspath(place)), is_file(place)
    if of_file and not path.is_file():
        near = suggest(path.name, [other.name for other in path.parent.glob("*.py")])
        raise ConfigError(
            f"{label}: there is no file {place!r}.{near} Check the path; the working directory is {os.getcwd()!r}."
        )
    _reach(os.getcwd())
    try:
        return _module_of_file(path) if of_file else _module(place)
    except (Exception, SystemExit) as error:  # the named boundary: user code may raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{place}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{label}: there is no module {missing!r}. Run where it can be imported (the working directory is "
                f"{os.getcwd()!r}), or name a file: file.py:NAME."
            ) from None
        raised = f"{type(error).__name__}: {error}{_where(error)}"
        raise ConfigError(f"{label}: importing {place!r} raised {raised}. Fix that first.") from error


def _module(name: str) -> ModuleType:
    """Import a module; one of the working directory comes before those of folders that were searched earlier."""
    folder, top = os.getcwd(), name.partition(".")[0]
    importlib.invalidate_caches()
    here = PathFinder.find_spec(top, [folder])
    if here is None or here.origin is None or _imports(top, here.origin):
        return importlib.import_module(name)
    if name == top and here.submodule_search_locations is None:
        return _module_of_file(Path(here.origin))
    return importlib.import_module(f"{_package(folder)}.{name}")


def _imports(name: str, file: str) -> bool:
    """Return whether ``import name`` means this file, an installed package, or a module of Python's own."""
    loaded = sys.modules.get(name)
    spec = loaded.__spec__ if loaded else PathFinder.find_spec(name)
    if name in sys.stdlib_module_names or spec is None or spec.origin is None:
        return True
    return spec.origin.startswith(_SITES) or os.path.realpath(spec.origin) == os.path.realpath(file)


def _module_of_file(path: Path) -> ModuleType:
    """Run a file as an import would; its neighbours import this version of it, too."""
    package, name = _package(path.parent.resolve()), _version(path)
    if f"{package}.{name}" not in sys.modules:
        _reach(str(path.parent.resolve()))
        sys.modules.pop(f"{package}.{path.stem}", None)
    importlib.invalidate_caches()
    return importlib.import_module(f"{package}.{name}")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _package(folder: Path | str) -> str:
    """Return the package that holds the modules beside the files of a folder, apart from other folders' modules."""
    return f"{MODULES}{_digest(str(folder))}"


def _version(file: Path) -> str:
    facts = file.stat()
    return f"{_word(file)}_{_digest(f'{file.name} {facts.st_mtime_ns} {facts.st_size}')}"


def _word(file: Path) -> str:
    return re.sub("[^a-zA-Z0-9]", "_", file.stem)


class _Neighbours:
    """Finder of a `_package`, of its modules and of a `_version` of a file."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(MODULES):
            return None
        own = name.rpartition(".")[2]
        if name == f"{MODULES}{own}":
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [folder for folder in search_path() if _package(folder) == name]
            return spec if spec.submodule_search_locations else None
        found = PathFinder.find_spec(name, path)
        version = re.fullmatch("(.*)_[0-9a-f]{12}", own)
        if found is None and version:
            files = [file for folder in path or () for file in Path(folder).iterdir() if _word(file) == version[1]]
            specs = (spec_from_file_location(name, f, loader=SourceFileLoader(name, str(f))) for f in files)
            found = next((spec for spec, f in zip(specs, files, strict=True) if _version(f) == own), None)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader = _Fresh(name, found.loader.path)
        return found


sys.meta_path.insert(0, _Neighbours)


class _Fresh(SourceFileLoader):
    """Loader that always compiles the current source and writes no ``__pycache__`` next to the user's file.

    As in a script, the file's imports find modules of its folder first.  These are loaded under private names, so two
    files may have different neighbours of the same name, or a neighbour named like an installed package.  A neighbour
    never hides a module of Python's library, and a file that is no package never hides an installed package.
    """

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        self.package = MODULES + module.__name__.removeprefix(MODULES).partition(".")[0]
        file = Path(self.path)
        if module.__name__ == f"{self.package}.{_version(file)}":
            sys.modules[f"{self.package}.{file.stem}"] = module  # for neighbours that import it in turn
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": self._import}
        super().exec_module(module)

    def _import(self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:  # noqa: A002
        top = name.partition(".")[0]
        if level or not self._is_neighbour(top):
            return builtins.__import__(name, globals, locals, fromlist, level)
        found = builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist, 0)
        return found if fromlist else sys.modules[f"{self.package}.{top}"]

    def _is_neighbour(self, name: str) -> bool:
        spec = None if name in sys.stdlib_module_names else find_spec(f"{self.package}.{name}")
        if spec is None:
            return False
        installed = PathFinder.find_spec(name)
        if spec.origin is None:  # a folder without __init__.py gives way to what is installed
            return installed is None or installed.origin is None
        if Path(self.path).name == "__init__.py" or not os.path.samefile(spec.origin, self.path):
            return True
        return installed is None or not str(installed.origin).startswith(_SITES)


_SITES = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()})
"""Folders of installed packages: a file named like one of them imports the package by that name, not itself."""


def search_path() -> list[str]:
    """Return where this process looks for modules, for another one: Python ignores entries that are no text."""
    entries: list[Any] = sys.path
    return [entry for entry in entries if isinstance(entry, str)]


def _reach(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


def _where(error: BaseException) -> str:
    """Return the line of the user's code that raised, in parentheses; nothing for syntax errors, which name it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    return f" (line {own[-1].lineno} of {own[-1].filename})" if own and not isinstance(error, SyntaxError) else ""


def _attribute(owner: Any, name: str, label: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        known = [other for other in dir(owner) if not other.startswith("_") and callable(getattr(owner, other, None))]
        raise ConfigError(
            f"{label}: there is no {name!r} in it.{suggest(name, known)} It has: {', '.join(known) or 'no functions'}."
        ) from None
