"""Decides how Triton's kernels run, before anything imports it, which files of tests run first, and which untraced.

Tracing for coverage doubles the time of Python code.  So whole runs that need only parts with tests of their own are
untraced; so is what compiles and interprets kernels, which are left out of coverage (see pyproject.toml); and single
tests that do for long what others do, too, are marked ``no_cover``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from numba.core.dispatcher import Dispatcher

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # else they are compiled


hypothesis.settings.register_profile("any machine", deadline=None)  # an example may take long on a busy one
hypothesis.settings.load_profile("any machine")


@contextmanager
def untraced() -> Iterator[None]:
    """While open, this thread and those that it starts have no tracer."""
    tracer, of_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    try:
        yield
    finally:
        sys.settrace(tracer)
        threading.settrace(of_threads)


Dispatcher.compile = untraced()(Dispatcher.compile)
if importlib.util.find_spec("triton") is not None:
    from triton.runtime.interpreter import GridExecutor

    GridExecutor.__call__ = untraced()(GridExecutor.__call__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Any:
    with nullcontext() if place_of(item).startswith(TRACED) else untraced():
        return (yield)


def place_of(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).as_posix()


TRACED = ("unit/", "contract/", "integration/engines/ray/", "integration/planning/", "integration/run/artifacts/")
"""Tests that coverage is measured in: the others are whole runs of parts that have tests of their own."""

SLOW = (
    "integration/engines/ray/test_engine.py",
    "integration/engines/ray/test_cluster.py",
    "integration/engines/vllm/test_ranks.py",
    "integration/test_real_model.py",
    "contract/engines/vllm/test_engine.py",
    "integration/run/test_fifty_generations.py",
    "integration/strategies/test_every_strategy.py",
    "contract/engines/test_engine_protocol.py",
    "integration/test_evidence_cells.py",
    "unit/engines/transformers/cpu_kernels/test_machine_code.py",
    "contract/engines/vllm/test_weights.py",
    "integration/engines/vllm/test_real_model.py",
    "integration/engines/vllm/test_training.py",
    "contract/engines/transformers/test_gaussian.py",
    "integration/test_gpu_check.py",
    "unit/numerics/kernels/test_gpu.py",
    "contract/engines/transformers/test_places.py",
    "contract/engines/transformers/test_model_families.py",
    "integration/test_same_run_everywhere.py",
    "invariant/test_kernels_agree.py",
    "integration/evaluation/test_evaluate.py",
    "invariant/test_kill_and_resume.py",
    "unit/numerics/machine/test_cache_folders.py",
    "unit/engines/vllm/test_tensor_layout.py",
)
"""The files that take longest, the longest first: processes that share the work then end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(place_of(item), len(SLOW)))
