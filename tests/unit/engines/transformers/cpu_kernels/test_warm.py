"""Kernels compiled ahead, in a process beside a run: those that an engine needs, and never in its way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from seedtune.cli import warming
from seedtune.config.config import Config
from seedtune.engines.transformers.cpu_kernels import warm
from seedtune.engines.transformers.product_choice import resolve
from seedtune.numerics.machine import available_cores, caching, processor

KERNELS = """
import json, sys
from numba.core.dispatcher import Dispatcher
from seedtune.numerics.machine.caching import KernelCache

def kernels():
    '''Each kernel with a cache on the disk, with the types that it was called with.'''
    modules = [module for name, module in sys.modules.items() if name.startswith("seedtune.")]
    found = {one for module in modules for one in vars(module).values() if isinstance(one, Dispatcher)}
    cached = [one for one in found if isinstance(one._cache, KernelCache)]
    return sorted(f"{one.py_func.__qualname__}{types}" for one in cached for types in one.signatures)

"""

AHEAD = """
from seedtune.engines.transformers.cpu_kernels.warm import warm
warm(sys.argv[1])
print(json.dumps(kernels()))
"""

ENGINE = """
import os
import models
from seedtune.types import Member, Term, Update

def use(dtype, folder):
    engine = models.load_engine(folder, dtype=dtype)
    members = [Member(0, pair, sign) for pair in range(2) for sign in (1, -1)]
    for texts in (("a",), ("some", "prompts", "more")):
        list(engine.evaluate([models.job(models.text_prompts(*texts), members=members)]))
    engine.apply(Update(0, (Term(0, 0, 1e-3),)))
    engine.fingerprint()
    print(json.dumps(kernels()), flush=True)

for folder in sys.argv[1:]:  # a process for each type, after the imports
    if os.fork() == 0:
        use(os.path.basename(folder), folder)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def kernels_of(program: str, *arguments: str) -> list[set[str]]:
    """The kernels that each process of a program has loaded or compiled at its end."""
    command = [sys.executable, "-c", KERNELS + program, *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return [set(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]


def config(**settings: Any) -> Config:
    return Config(model="smollm2-135m", task="conciseness", **settings)


@pytest.mark.slow
def test_after_it_an_engine_compiles_nothing(tmp_path: Path) -> None:
    dtypes = ("bfloat16", "float32")
    folders = [models.save_family("llama", tmp_path / dtype, dtype=getattr(torch, dtype)) for dtype in dtypes]
    warmed = [kernels_of(AHEAD, dtype)[0] for dtype in dtypes]
    for ahead, used in zip(warmed, kernels_of(ENGINE, *map(str, folders)), strict=True):
        assert len(used) >= 12, used
        assert used <= ahead, f"not compiled ahead: {sorted(used - ahead)}"


def test_it_loads_no_torch() -> None:
    code = (
        "import sys; import seedtune.engines.transformers.cpu_kernels.warm; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", ["auto", "library", "fma32", "bf16dot"])
@pytest.mark.parametrize("features", [None, {"avx2", "fma"}, {"amx-bf16", *processor.VECTORS["AVX512-BF16"]}, set()])
def test_products_are_those_of_the_engine(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, wanted: str, features: set[str] | None
) -> None:
    if features is not None:
        monkeypatch.setattr(processor, "features", lambda: frozenset(features))
    found = warm.product_kind(wanted, bfloat16=dtype == torch.bfloat16)
    if found is not None or wanted in ("auto", "library"):
        assert (found or "library") == resolve(wanted, dtype, torch.device("cpu")).kind


def test_it_stops_when_the_process_that_asked_for_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    parents, done = iter([7, 7, 7, 1]), []

    def steps(_self: warm.Warmer) -> Iterator[Callable[[], None]]:
        for number in range(5):
            yield lambda number=number: done.append(number)

    monkeypatch.setattr(warm.Warmer, "steps", steps)
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    warm.warm("bfloat16")
    assert done == [4, 3]


@pytest.fixture
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with two cores, no accelerator and an empty cache."""
    monkeypatch.setattr(caching, "folder", lambda: tmp_path)
    monkeypatch.setattr(warming, "ACCELERATORS", ())
    monkeypatch.setattr(available_cores, "available", lambda *_: available_cores.Fit(2, 2))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return tmp_path


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    seen: list[Config] = []
    monkeypatch.setattr(warming, "_start", seen.append)
    return seen


@pytest.mark.parametrize("settings", [{}, {"transformers": {"device": "cpu"}}, {"dtype": "float32"}])
def test_it_is_started_for_a_cold_cache(cold: Path, started: list[Config], settings: dict[str, Any]) -> None:
    warming.compile_beside(config(**settings))
    assert len(started) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "toy"},
        {"transformers": {"device": "cuda"}},
        {"dtype": "float16"},
    ],
)
def test_it_is_not_started_for_what_needs_other_kernels(
    cold: Path, started: list[Config], settings: dict[str, Any]
) -> None:
    warming.compile_beside(config(**settings))
    assert started == []


def test_it_is_not_started_beside_an_accelerator_on_one_core_or_for_a_cache_with_kernels(
    cold: Path, started: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(warming, "ACCELERATORS", (cold,))
        warming.compile_beside(config())
    with monkeypatch.context() as patch:
        patch.setattr(available_cores, "available", lambda: available_cores.Fit(1, 2))
        warming.compile_beside(config())
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        warming.compile_beside(config())
    (cold / "kernel.nbi").write_bytes(b"")
    warming.compile_beside(config())
    assert started == []


def test_a_failure_is_only_logged(
    cold: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(cold / "missing"))
    with caplog.at_level("INFO", "seedtune"):
        assert warming.compile_beside(config()) is None
    assert "kernels are not compiled ahead (FileNotFoundError" in caplog.text


def test_it_is_a_process_of_its_own_that_ends_with_this_one(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Callable[[], None]] = []
    monkeypatch.setattr(warming.atexit, "register", lambda end, process: ends.append(lambda: end(process)))
    monkeypatch.setattr(warming, "_START", "import time; time.sleep(600)")
    process = warming.compile_beside(config())
    assert process is not None
    try:
        assert os.getsid(process.pid) == process.pid
        assert process.poll() is None
    finally:
        ends[0]()
    assert process.poll() == -9
