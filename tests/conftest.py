"""Decides, before anything imports triton, how its kernels run: compiled where there is a GPU, else interpreted.

And which files come first: those that take longest, so that several processes end at about the same time.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

SLOW = ("integration/test_fleet.py",)
"""Files by how long they take, as ``scripts/test`` says at its end (``--durations``); any other comes after them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here, order = Path(__file__).parent, {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(item.path.relative_to(here).as_posix(), len(SLOW)))
