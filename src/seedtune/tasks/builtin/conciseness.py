"""Conciseness: as few characters as the ideal answer has (arXiv 2509.24372, with our own questions).

The reward depends on length only: with long training most answers become empty.  `right_and_brief` also rewards the
right answer.  For example::

    What is the capital of Japan?

    It is Tokyo.

The ideal answer is "Tokyo", so this one gets −7, and "Osaka" gets 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import NoSettings, Task, TaskKind
from seedtune.tasks.data.rows import packaged


def length_error(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """Return −|len(completion) − len(answer)| in characters, without the prompt (arXiv 2509.24372)."""
    return [-float(abs(len(text_of(c)) - len(a))) for c, a in zip(completions, answer, strict=True)]


def conciseness(_: NoSettings) -> Task:
    """Create the task: 32 training and 96 held-out questions; reward −|len(answer) − len(target)| in characters."""
    return Task(
        "conciseness",
        *packaged("conciseness"),
        rewards=(Reward("length_error", length_error),),
        gold=lambda example: str(example.columns["answer"]),
        full_marks=0.0,
        graded=True,
        no_marks=-1.0,
    )


KIND = TaskKind(
    build=conciseness,
    what="answer with as few characters as the ideal answer (length only: ends in empty answers)",
    reward="−|length − ideal length|, 0 at best",
    sizes=(32, 96),
)
