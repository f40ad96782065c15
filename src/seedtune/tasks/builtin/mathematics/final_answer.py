"""Mathematics tasks with a final answer, the common part of GSM8K and MATH."""

from __future__ import annotations

from collections.abc import Callable

from seedtune.rewards.base import Reward
from seedtune.tasks.base import Task
from seedtune.tasks.builtin.mathematics.math_answer import answer_said, math_answer
from seedtune.tasks.data.rows import examples
from seedtune.tasks.data.sources import Row, SourceSettings, chat, rows
from seedtune.types import Example

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

ReadPair = Callable[[Row, int], tuple[str, str]]
"""(row, index) → (question, final answer); raises DataError with the index of a malformed row."""


def final_answer_task(name: str, settings: SourceSettings, usual: tuple[str, str | None], pair: ReadPair) -> Task:
    """Create a task from ``settings``, by default from the ``usual`` (Hugging Face id, configuration).

    The reward is 1 for an equal final answer, else 0.
    """

    def made(found: list[Row], split: str) -> tuple[Example, ...]:
        return examples(chat([pair(row, index) for index, row in enumerate(found)], INSTRUCTION), split)

    train, test = rows(settings, usual)
    return Task(
        name=name,
        train=made(train, "train"),
        test=made(test, "test"),
        rewards=(Reward("correct", math_answer, source="seedtune.tasks.builtin.mathematics.math_answer.math_answer"),),
        gold=boxed_answer,
        full_marks=1.0,
        answer=answer_said,
    )


def boxed_answer(example: Example) -> str:
    r"""Return a completion with the right answer in ``\boxed{}``."""
    return f"The answer is \\boxed{{{example.columns['answer']}}}."
