"""What a reward is: a function that scores completions, with its name and its weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    """What it was loaded from: ``seedtune.rewards.sources.load.load(source)`` gives ``function`` again in any process.

    ``/path/file.py:name``, ``module.name``, or one of these behind an adapter, ``verl@module.name``.  None: it was
    given as a function.
    """

    inline: bool = False
    """It must run in the main process: it holds a model, or waits in threads of its own (judges)."""
