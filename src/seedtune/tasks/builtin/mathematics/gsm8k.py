"""GSM8K: grade-school word problems (arXiv 2110.14168), from the Hugging Face Hub or local files."""

from __future__ import annotations

from seedtune.errors import DataError
from seedtune.tasks.base import Task, TaskKind
from seedtune.tasks.builtin.mathematics.final_answer import final_answer_task
from seedtune.tasks.data.sources import Row, SourceSettings, column

SOURCE = ("openai/gsm8k", "main")


def gsm8k(settings: SourceSettings) -> Task:
    """Create GSM8K from rows with ``question`` and ``answer`` (ending in ``#### number``); reward 1 if right."""
    return final_answer_task("gsm8k", settings, SOURCE, _pair)


def _pair(row: Row, index: int) -> tuple[str, str]:
    return column(row, "question", index), _final(row, index)


def _final(row: Row, index: int) -> str:
    before, mark, final = column(row, "answer", index).rpartition("####")
    if not mark or not final.strip():
        raise DataError(f"the answer of question {index} does not end in '#### number': {before[-60:]!r}. Add it.")
    return final.strip().replace(",", "")


KIND = TaskKind(
    build=gsm8k,
    settings=SourceSettings,
    what="grade-school word problems (openai/gsm8k)",
    reward="1 for the right final answer",
    sizes=(7473, 1319),
    needs=("datasets", "math_verify"),
)
