"""MATH: competition mathematics (arXiv 2103.03874), from the Hugging Face Hub or local files."""

from __future__ import annotations

from seedtune.tasks.base import Task, TaskKind
from seedtune.tasks.builtin.mathematics.final_answer import final_answer_task
from seedtune.tasks.data.sources import Row, SourceSettings, column

SOURCE = ("nlile/hendrycks-MATH-benchmark", None)
"""12,000 training problems; the 500 problems of MATH-500 are held out."""


def competition_math(settings: SourceSettings) -> Task:
    """Create MATH from rows with ``problem`` and ``answer`` (LaTeX); reward 1 if math-verify finds them equal."""
    return final_answer_task("math", settings, SOURCE, _pair)


def _pair(row: Row, index: int) -> tuple[str, str]:
    return column(row, "problem", index), column(row, "answer", index)


KIND = TaskKind(
    build=competition_math,
    settings=SourceSettings,
    what="competition mathematics (MATH, MATH-500 held out)",
    reward="1 for an equal final answer",
    sizes=(12000, 500),
    needs=("datasets", "math_verify"),
)
