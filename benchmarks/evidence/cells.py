"""A cell of the study: one run of a method on a task, with what it cost and what it reached at points on the way."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any

Row = dict[str, Any]

POINTS = (0.125, 0.25, 0.5, 1.0)
"""Shares of the budget after which a model is measured."""


@dataclass(frozen=True)
class Cell:
    """What is run: the configuration by which a finished run is found again."""

    purpose: str
    """``tune`` (measured on training prompts), ``result``, ``variant``, ``timing`` or ``quick``."""

    task: str
    model: str
    method: str
    label: str
    settings: Row
    seed: int
    share: float = 1.0
    """Part of the task's budget of rollouts."""

    @property
    def id(self) -> str:
        """A name for files: the digest of the configuration."""
        made = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(made.encode()).hexdigest()[:12]


@dataclass
class Point:
    """A model on the way, what it has cost so far, and what it is worth."""

    rollouts: int
    flops: float
    """2 × parameters for every token forward, 6 × for every token of a gradient step."""

    seconds: float
    measured: Row = field(default_factory=dict)
