"""MATH: competition mathematics (arXiv 2103.03874), read from a hub or local files."""

from __future__ import annotations

from seedtune.tasks.base import Task, TaskKind
from seedtune.tasks.builtin.mathematics.final_answer import final_answer_task
from seedtune.tasks.data.sources import Row, SourceSettings, column

SOURCE = ("nlile/hendrycks-MATH-benchmark", None)
"""12,000 training problems, and the 500 of MATH-500 held out."""


def competition_math(settings: SourceSettings) -> Task:
    """Rows with ``problem`` and ``answer`` (LaTeX); reward 1 for an answer that math-verify finds equal."""
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
