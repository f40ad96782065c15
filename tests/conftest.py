"""Decides how Triton's kernels run, before anything imports it, and which files of tests run first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # else they are compiled

SLOW = (
    "integration/test_fleet.py",
    "integration/test_vllm_ranks.py",
    "integration/test_fleet_cluster.py",
    "contract/test_vllm_engine.py",
    "integration/test_fifty_generations.py",
    "integration/test_vllm_training.py",
    "integration/test_conversations.py",
    "integration/test_every_strategy.py",
    "integration/test_vllm_real_model.py",
    "integration/test_real_model.py",
    "integration/test_evaluation.py",
    "contract/test_full_rank.py",
    "invariant/test_kernels_agree.py",
    "unit/test_gpu_kernels.py",
    "invariant/test_kill_and_resume.py",
    "contract/test_vllm_weights.py",
    "contract/test_engine_protocol.py",
    "unit/test_vllm_layout.py",
)
"""The files that take longest, the longest first: processes that share the work then end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here, order = Path(__file__).parent, {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.relative_to(here).as_posix(), len(SLOW)))
