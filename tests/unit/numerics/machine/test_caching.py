"""Compiled kernels on the disk: processes that start together compile each once, whatever happens to one of them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runs
import seedtune
from seedtune import activities
from seedtune.numerics.machine import caching
from waiting import BOUND, wait_until

KERNELS = """
import seedtune.numerics.machine.caching as caching

@caching.njit(cache=True, nogil=True)
def inner(x):
    return x + x

@caching.njit(cache=True, nogil=True)
def outer(x):
    return inner(x) + x
"""

CALL = """
import json, sys
import numpy as np
from numba.core import event
import kernels

class Slow(event.Listener):
    '''Says which function is compiled, and compiles it after a line of input; "fail" makes it fail.'''

    def on_start(self, found):
        name = found.data["dispatcher"].py_func.__name__
        if name in sys.argv[2:]:
            print(name, flush=True)
            if input() == "fail":
                raise RuntimeError("no memory")

    def on_end(self, found):
        pass

event.register("numba:compile", Slow())
try:
    value = float(kernels.outer(np.dtype(sys.argv[1]).type(1)))
except RuntimeError as error:
    value = str(error)
print(json.dumps([value, *(sum(one.stats.cache_misses.values()) for one in (kernels.outer, kernels.inner))]))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "kernels.py").write_text(KERNELS)
    return tmp_path


def caller(package: Path, *arguments: str) -> subprocess.Popen[str]:
    """A process that calls ``outer`` with a number of a type, and that stops before it compiles the named functions."""
    path = os.pathsep.join([str(package), str(Path(seedtune.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "SEEDTUNE_CACHE": str(package / "cache")}
    env.pop("NUMBA_CACHE_DIR", None)
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", CALL, *arguments], env=env, stdin=pipe, stdout=pipe, text=True)


def result(process: subprocess.Popen[str], line: str = "") -> list[Any]:
    """The value and the numbers of compilations of ``outer`` and ``inner`` at the end of a process."""
    output = process.communicate(f"{line}\n", timeout=BOUND)[0]
    assert process.returncode == 0
    return json.loads(output)


def waits(process: subprocess.Popen[str]) -> bool:
    """Whether a process has the file of a lock open."""
    for file in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            if os.readlink(file).endswith(".lock"):
                return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(("held", "end"), [("outer", "compiled"), ("outer", "fail"), ("inner", "killed")])
def test_a_process_waits_for_one_that_compiles_the_same_function_and_compiles_only_if_that_fails(package, held, end):
    first = caller(package, "float32", held)
    assert first.stdout.readline() == f"{held}\n"
    second = caller(package, "float32")
    assert wait_until(lambda: waits(second), process=second)
    if end == "killed":
        first.kill()
        first.communicate()
    else:
        assert result(first, end) == ([3.0, 1, 1] if end == "compiled" else ["no memory", 1, 0])
    assert result(second) == [3.0, *((0, 0) if end == "compiled" else (1, 1))]
    assert len(list(package.rglob("kernels.outer-*.nbc"))) == 1


@pytest.mark.slow
def test_processes_that_compile_different_signatures_at_once_keep_both(package):
    for compiled in (1, 0):
        started = [caller(package, kind) for kind in ("float32", "int64")]
        assert [result(process) for process in started] == [[3.0, compiled, compiled]] * 2
    (index,) = package.rglob("kernels.outer-*.nbi")
    assert len(list(index.parent.glob("kernels.outer-*.nbc"))) == 2


@pytest.fixture
def twice(tmp_path, monkeypatch):
    monkeypatch.setattr(caching, "folder", lambda: tmp_path)
    monkeypatch.setattr(caching, "_waited_in_vain", threading.Event())

    @caching.njit(cache=True, nogil=True)
    def twice(x):
        return x + x

    return twice


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "no locks available")


@pytest.mark.parametrize("why", ["held for too long", "no locks"])
def test_a_function_that_cannot_be_locked_is_compiled_all_the_same_and_not_saved(tmp_path, monkeypatch, twice, why):
    with open(tmp_path / f"{twice._cache._impl.filename_base}.lock", "wb") as held, monkeypatch.context() as patch:
        fcntl.flock(held, fcntl.LOCK_EX)
        patch.setattr(caching, "LOCK_SECONDS", 0.1)
        if why == "no locks":
            patch.setattr(fcntl, "flock", refuse)
        assert twice(1.0) == 2.0
        assert not list(tmp_path.glob("*.nb[ic]"))
    assert twice(1) == 2
    assert len(list(tmp_path.glob("*.nbc"))) == 1
    assert activities.current() == ()


def test_a_process_waits_in_vain_only_once(tmp_path, monkeypatch, twice):
    """A stopped process may hold the locks of many functions."""
    with open(tmp_path / f"{twice._cache._impl.filename_base}.lock", "wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(caching, "LOCK_SECONDS", 0.1)
        assert twice(1.0) == 2.0
        monkeypatch.setattr(caching, "LOCK_SECONDS", 1e6)
        assert twice(np.float32(1)) == 2


def test_threads_that_compile_at_once_leave_no_lock(tmp_path, twice):
    with ThreadPoolExecutor() as threads:
        values = list(threads.map(twice, [1, 1.0, np.float32(1), np.int8(1), 1, 1.0, np.uint16(1), 1j]))
    assert values == [2] * 7 + [2j]
    assert len(list(tmp_path.glob("*.nbc"))) == 6
    with open(tmp_path / f"{twice._cache._impl.filename_base}.lock", "wb") as free:
        fcntl.flock(free, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ------------------------------------------------------------------------- names

MADE = """
import math
import seedtune.numerics.machine.caching as caching

def made(constant):
    @caching.inner()
    def value(x):
        total = 0.0
        for i in range(x.size):
            for j in range(x.size):
                total += math.exp(math.sin(x[i]) * math.cos(x[j])) - math.atan2(x[i], 1.0 + x[j] * x[j])
            total += math.log1p(x[i]) * math.sinh(x[i]) + math.erf(x[i]) + math.gamma(1.0 + x[i])
        return constant + 0.0 * total
    return value

one, two = made(1.0), made(2.0)

@caching.njit(cache=True)
def first(x):
    return one(x) + one(x[1:])

@caching.njit(cache=True)
def second(x):
    return two(x) + two(x[1:])
"""


def test_code_of_two_processes_is_called_by_names_of_its_own(package):
    """Each compiles a function of one factory, as its first; a third process reads both."""
    (package / "kernels.py").write_text(MADE)
    call = "import sys, numpy, kernels; print([getattr(kernels, name)(numpy.ones(3)) for name in sys.argv[1:]])"
    path = os.pathsep.join([str(package), str(Path(seedtune.__file__).parents[1])])
    env = {**os.environ, "PYTHONPATH": path, "SEEDTUNE_CACHE": str(package / "cache")}
    env.pop("NUMBA_CACHE_DIR", None)
    for names in (["first"], ["second"], ["first", "second"]):
        done = subprocess.run([sys.executable, "-c", call, *names], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [2.0, 4.0]


NAMES = """
import gc, importlib, json, pkgutil, sys
from numba.core.dispatcher import Dispatcher
from seedtune.engines.transformers import cpu_kernels
from seedtune.numerics import kernels

for package in (cpu_kernels, kernels):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if "gpu" not in module.name:
            importlib.import_module(module.name)
found = [each.py_func for each in gc.get_objects() if issubclass(type(each), Dispatcher)]
print(json.dumps(sorted(f"{f.__module__}.{f.__qualname__}" for f in found if f.__module__.startswith("seedtune."))))
"""


def test_no_two_compiled_functions_of_the_package_have_one_name_and_every_process_has_the_same():
    command = [sys.executable, "-c", NAMES]
    names, again = (
        json.loads(subprocess.run(command, env=runs.environment(), capture_output=True, check=True).stdout)
        for _ in range(2)
    )
    assert len(set(names)) == len(names) > 50
    assert again == names
