"""The reward type: a function that scores completions, with a name and a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RewardFunction = Callable[..., Any]
"""TRL's signature: ``fn(prompts, completions, **columns) -> list[float | None]``, sync or async.

``prompts`` and ``completions`` are strings, or lists of chat messages for conversational prompts; ``columns``
are the data set's other columns, one list per column.  A function may accept fewer keywords.
"""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward function, its name in the metrics and its weight in the weighted sum."""

    name: str
    function: RewardFunction
    weight: float = 1.0
    source: str | None = None
    """Import path of the function: ``seedtune.rewards.sources.load.load(source)`` returns it in any process.

    ``/path/file.py:name``, ``module.name``, or either with an adapter prefix, ``verl@module.name``.  None: the
    reward was passed as a function.
    """

    inline: bool = False
    """Whether the reward must run in the main process: it holds a model, or waits in its own threads (judges)."""
