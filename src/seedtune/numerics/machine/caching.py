"""numba's ``njit`` with a disk cache that is never stale, and that is disabled if no folder is writable.

numba's own cache notices edits of a compiled function's file, but not of files that it imports; it raises when it
finds no writable folder, processes that start together all compile the same functions, and two that save different
signatures at once may exchange them.  Here the folder is named by a digest of all sources that compiled code is made
from, one process at a time compiles a function and saves it while others wait to read it, and a file that cannot be
read or written only costs another compilation.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import IO, Any

import llvmlite
import numba
import numpy as np
from numba.core import event
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.compiler_lock import global_compiler_lock

from seedtune import activities
from seedtune.numerics.machine import cache_folders

log = logging.getLogger("seedtune")

KERNELS = ("engines/transformers/cpu_kernels", "numerics/kernels", "numerics/machine")
"""Folders of the package that contain compiled code."""

OUTSIDE = ("numerics/fingerprint.py", "numerics/noise.py", "numerics/rounding.py")
"""Other files of the package whose constants are built into compiled code."""

UNUSED_DAYS = 30
"""A folder of other sources is removed after this long without use."""

LOCK_SECONDS = 60.0
"""Seconds to wait for a process that compiles the same function: it may be stopped, not only slow."""

_waited_in_vain = threading.Event()
"""Set once `LOCK_SECONDS` ran out: the process does not wait for other functions, too."""


def njit(*, cache: bool = False, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile like `numba.njit`, with ``cache`` on the disk if a folder for it is available."""

    def compiled(function: Callable[..., Any]) -> Any:
        dispatcher = numba.njit(no_cfunc_wrapper=True, **options)(function)
        if cache and folder() is not None:
            dispatcher._cache = KernelCache(function)
            dispatcher.compile = dispatcher._cache.in_turn(dispatcher.compile)
        return dispatcher

    return compiled


def inner(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile like `numba.njit`, for calls from compiled code only: without the costly wrappers for Python and C.

    Functions that a factory makes from different constants get different names.  numba calls compiled code by a
    function's name and by how many functions its process had compiled before, so code of two processes, read from the
    cache by a third, may have one name; the linker then takes the first for both.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        if function.__closure__:
            constants = hashlib.blake2b(_described(function).encode(), digest_size=8).hexdigest()
            function.__qualname__ += f"_{constants}"
        return numba.njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)(function)

    return compiled


def _described(value: Any) -> str:
    """Return a text that is equal for values with which functions compile to the same code, in every process."""
    if isinstance(value, tuple):
        return f"({','.join(map(_described, value))})"
    function = getattr(value, "py_func", getattr(value, "_defn", value))  # of compiled functions and intrinsics
    if not isinstance(function, FunctionType):
        return repr(value)
    cells = [_described(cell.cell_contents) for cell in function.__closure__ or ()]
    return f"{function.__module__}.{function.__qualname__}:{function.__code__.co_firstlineno}({','.join(cells)})"


@cache
def folder() -> Path | None:
    """Return the folder for this process's compiled kernels; None if none is writable."""
    name = digest()
    if name is None:
        return None
    chosen = numba.config.CACHE_DIR
    found = (
        cache_folders.make_private(Path(chosen) / f"seedtune-{name}")
        if chosen
        else cache_folders.private_folder("numba", name)
    )
    if found is None:
        log.info("compiled kernels are not kept: no folder for them can be written; set SEEDTUNE_CACHE to one")
        return None
    _tidy(found)
    return found


@cache
def digest() -> str | None:
    """Return a digest of compiled code's sources and of the compiler's versions; None if the sources are not files."""
    package = Path(__file__).parents[2]
    kernels = [file for folder in KERNELS for file in sorted((package / folder).glob("*.py"))]
    sources = [*kernels, *(package / name for name in OUTSIDE)]
    found = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {np.__version__}".encode())
    try:
        for source in sources:
            found.update(source.name.encode() + b"\0" + source.read_bytes())
    except OSError:
        return None
    return found.hexdigest()[:16]


def _tidy(mine: Path) -> None:
    """Mark this folder as used, and remove those of other sources that have long been unused."""
    with suppress(OSError):
        os.utime(mine)
        long_ago = time.time() - UNUSED_DAYS * 86400
        prefix = mine.name.removesuffix(str(digest()))
        for other in mine.parent.glob(f"{prefix}{'[0-9a-f]' * 16}"):
            if other.stat().st_mtime < long_ago:
                shutil.rmtree(other, ignore_errors=True)


class _Locator(_CacheLocator):
    """Puts everything in one folder; functions with the same name differ by their line."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._py_file, self._line = function.__code__.co_filename, function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Callable[..., Any], _file: str) -> _Locator:
        return cls(function)

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return str(digest())

    def get_disambiguator(self) -> str:
        return str(self._line)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class KernelCache(FunctionCache):
    """A compiled function's cache: one process at a time compiles and saves it, and failures disable the cache.

    A process that misses a signature takes the lock of the function, looks again, compiles and saves.  Locks are taken
    in the order of calls between compiled functions, which has no cycles; after `LOCK_SECONDS` (once), or where files
    cannot be locked, the function is compiled without the lock and not saved.  The lock of a killed process is free.
    """

    _impl_class = _Implementation
    _lock: IO[bytes] | None = None

    def in_turn(self, compile: Callable[[Any], Any]) -> Callable[[Any], Any]:  # noqa: A002 - numba's name
        """Return the dispatcher's ``compile``, which releases the function's lock however it ends."""

        def compile_in_turn(sig: Any) -> Any:
            with global_compiler_lock:  # one thread of this process at a time, which may compile recursively
                outer = self._lock
                try:
                    return compile(sig)
                finally:
                    if outer is None and self._lock is not None:
                        fcntl.flock(self._lock, fcntl.LOCK_UN)  # a child forked meanwhile has the file open, too
                        self._lock.close()
                        self._lock = None

        return compile_in_turn

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function of a signature; None if this process has to compile it."""
        found = self._load(sig, target_context)
        if found is None and self._lock is None:
            try:
                self._lock = _locked(Path(self.cache_path) / f"{self._impl.filename_base}.lock")
            except OSError as error:
                log.info("a compiled kernel cannot be kept: %s", error)
            else:
                found = self._load(sig, target_context)
        return found

    def _load(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # noqa: BLE001 - the named boundary: what is damaged is compiled again
            if self._lock is not None:
                log.info("a compiled kernel cannot be read (%s: %s) and is compiled again", type(error).__name__, error)
                with suppress(OSError):
                    self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save the compiled function of a signature, if this process has the lock."""
        if self._lock is None:
            return
        try:
            super().save_overload(sig, data)
        except OSError as error:
            log.info("a compiled kernel cannot be kept: %s", error)


def _locked(path: Path) -> IO[bytes]:
    """Return the open file, locked; raise `TimeoutError` if another process holds the lock for `LOCK_SECONDS`."""
    with ExitStack() as failed, activities.doing("compiling for this processor, in another process"):
        file, end = failed.enter_context(open(path, "wb")), time.monotonic() + LOCK_SECONDS
        while not _try_lock(file):
            if _waited_in_vain.is_set() or time.monotonic() > end:
                _waited_in_vain.set()
                raise TimeoutError(f"another process holds {path}, and this one has waited for {LOCK_SECONDS:.0f} s")
            time.sleep(0.05)
        failed.pop_all()
    return file


def _try_lock(file: IO[bytes]) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


class _Compilations(event.Listener):
    """Reports compilations to `seedtune.activities`; nested compilations count as part of the outer one."""

    def __init__(self) -> None:
        self._depth = self._count = 0
        self._now = activities.Activity("")

    def on_start(self, _event: Any) -> None:
        """Handle the start of a compilation."""
        self._depth += 1
        if self._depth == 1:
            self._count += 1
            self._now = activities.Activity(f"compiling for this processor, once: function {self._count}")
            activities.begin(self._now)

    def on_end(self, _event: Any) -> None:
        """Handle the end of a compilation, successful or not."""
        self._depth -= 1
        if self._depth == 0:
            activities.end(self._now)


event.register("numba:compile", _Compilations())
