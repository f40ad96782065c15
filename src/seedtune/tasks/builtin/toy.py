"""The toy task, for the toy engine: output the number that belongs to a prompt.  A run takes a second.

For example::

    number 1

    0.9

The number is 0.992, so this answer gets −0.092.
"""

from __future__ import annotations

import math
from typing import Any

from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import NoSettings, Task, TaskKind
from seedtune.tasks.data.rows import examples
from seedtune.types import Example


def toy(_: NoSettings) -> Task:
    """Create 16 prompts, which are also held out (there is nothing to generalise); reward −|completion − answer|."""
    rows = [{"prompt": f"number {index}", "answer": round(math.sin(1.7 * index), 3)} for index in range(16)]
    data = examples(rows, "train")
    return Task("toy", data, data, (Reward("closeness", closeness),), gold=_gold, full_marks=0.0, graded=True)


def _gold(example: Example) -> str:
    return str(example.columns["answer"])


def closeness(completions: list[Any], answer: list[float], **_: object) -> list[float | None]:
    """Return −|number − answer|, or None if the completion is not a number."""
    return [_closeness(text_of(c), target) for c, target in zip(completions, answer, strict=True)]


def _closeness(text: str, target: float) -> float | None:
    try:
        return -abs(float(text) - target)
    except ValueError:
        return None


KIND = TaskKind(
    build=toy,
    what="tell the number a prompt stands for (with the toy engine)",
    reward="−|number − answer|, 0 at best",
    sizes=(16, 16),
)
