"""Decides how Triton's kernels run, before anything imports it, and which files of tests run first.

Kernels are left out of coverage (see pyproject.toml), so what compiles and interprets them runs untraced, in half the
time.  Tests that do for long what others do, too, are marked ``no_cover`` for the same reason.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
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


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with this thread's tracer put aside while it runs."""

    def run(*arguments: Any, **options: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*arguments, **options)
        finally:
            sys.settrace(tracer)

    return run


Dispatcher.compile = untraced(Dispatcher.compile)
if importlib.util.find_spec("triton") is not None:
    from triton.runtime.interpreter import GridExecutor

    GridExecutor.__call__ = untraced(GridExecutor.__call__)

SLOW = (
    "integration/engines/ray/test_engine.py",
    "integration/engines/vllm/test_ranks.py",
    "integration/engines/ray/test_cluster.py",
    "contract/engines/vllm/test_engine.py",
    "integration/run/test_fifty_generations.py",
    "integration/engines/vllm/test_training.py",
    "integration/rollouts/test_conversations.py",
    "integration/strategies/test_every_strategy.py",
    "integration/engines/vllm/test_real_model.py",
    "integration/test_real_model.py",
    "integration/evaluation/test_evaluate.py",
    "contract/engines/transformers/test_gaussian.py",
    "invariant/test_kernels_agree.py",
    "unit/numerics/kernels/test_gpu.py",
    "invariant/test_kill_and_resume.py",
    "contract/engines/vllm/test_weights.py",
    "contract/engines/test_engine_protocol.py",
    "unit/engines/vllm/test_tensor_layout.py",
)
"""The files that take longest, the longest first: processes that share the work then end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here, order = Path(__file__).parent, {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.relative_to(here).as_posix(), len(SLOW)))
