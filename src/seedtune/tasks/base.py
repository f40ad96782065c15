"""A task: examples to train on, held-out examples, and the rewards that score completions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from seedtune.types import Example

RewardFunction = Callable[..., Any]
"""TRL's signature: ``fn(prompts, completions, **columns) -> list[float | None]``, sync or async.

``prompts`` and ``completions`` are text, or lists of chat messages for conversational prompts; ``columns``
are the data set's other columns, one list each.  A function may accept fewer keywords.
"""


@dataclass(frozen=True, slots=True)
class Reward:
    """One reward function with its name in the metrics and its weight in the sum."""

    name: str
    function: RewardFunction
    weight: float = 1.0

    source: str | None = None
    """What it was loaded from: ``seedtune.rewards.loading.load(source)`` gives ``function`` again in any process.

    ``/path/file.py:name``, ``module.name``, or one of these behind an adapter, ``verl@module.name``.  None: it was
    given as a function.
    """

    inline: bool = False
    """It must run in the main process: it holds a model, or waits in threads of its own (judges)."""


@dataclass(frozen=True, slots=True)
class Task:
    """Data and rewards, ready to be drawn from and scored."""

    name: str
    train: Sequence[Example]
    test: Sequence[Example]
    rewards: tuple[Reward, ...]

    full_marks: float | None = None
    """The reward of a perfect answer, above which accuracy counts it as right; None: the task has no such thing."""

    answer: Callable[[str], str] | None = None
    """What of a completion is its answer, for votes among samples; empty: it gives none.  None: the whole text."""

    def digest(self) -> str:
        """16 hexadecimal digits over the training examples.  Reward code has no digest: mending it is allowed."""
        rows = [[example.id, example.prompt, sorted(example.columns.items())] for example in self.train]
        text = json.dumps(rows, default=lambda value: type(value).__name__)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
