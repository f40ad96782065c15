"""MATH: competition mathematics (arXiv 2103.03874), read from a hub or local files."""

from __future__ import annotations

from seedtune.rewards.math_answer import answer_said, math_answer
from seedtune.tasks.base import Kind, Reward, Task
from seedtune.tasks.data import examples
from seedtune.tasks.gsm8k import INSTRUCTION, boxed_answer
from seedtune.tasks.sources import Row, SourceSettings, chat, column, rows

SOURCE = ("nlile/hendrycks-MATH-benchmark", None)
"""12,000 training problems, and the 500 of MATH-500 held out."""


def competition_math(settings: SourceSettings) -> Task:
    """Rows with ``problem`` and ``answer`` (LaTeX); reward 1 for an answer that math-verify finds equal."""
    train, test = rows(settings, SOURCE)
    return Task(
        name="math",
        train=examples(_prompts(train), "train"),
        test=examples(_prompts(test), "test"),
        rewards=(Reward("correct", math_answer, source="seedtune.rewards.math_answer.math_answer"),),
        gold=boxed_answer,
        full_marks=1.0,
        answer=answer_said,
    )


def _prompts(found: list[Row]) -> list[dict[str, object]]:
    pairs = [(column(row, "problem", index), column(row, "answer", index)) for index, row in enumerate(found)]
    return chat(pairs, INSTRUCTION)


KIND = Kind(
    build=competition_math,
    settings=SourceSettings,
    what="competition mathematics (MATH, MATH-500 held out)",
    reward="1 for an equal final answer",
    sizes=(12000, 500),
    needs=("datasets", "math_verify"),
)
