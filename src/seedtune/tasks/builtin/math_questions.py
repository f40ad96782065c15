r"""GSM8K (arXiv 2110.14168) and MATH (arXiv 2103.03874), from the Hugging Face Hub or local files.

seedtune ships none of these data.  For example::

    Janet has 3 bags of 4 apples and eats one apple. How many are left?

    Please reason step by step, and put your final answer within \boxed{}.

    3 · 4 = 12 and 12 - 1 = 11. The answer is \boxed{11}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from pydantic import Field

from seedtune.config.data_and_rewards import DatasetSettings
from seedtune.config.paths import DataPath
from seedtune.config.sections import Section
from seedtune.errors import DataError
from seedtune.rewards.base import Reward
from seedtune.tasks.base import Task, TaskKind
from seedtune.tasks.builtin.math_answer import math_answer, normalized_answer
from seedtune.tasks.data import datasets
from seedtune.tasks.data.rows import Examples, chat, examples
from seedtune.types import COUNT

GSM8K_DATA = DatasetSettings(path="openai/gsm8k", name="main")
MATH_DATA = DatasetSettings(path="nlile/hendrycks-MATH-benchmark")
"""12,000 training problems; the 500 problems of MATH-500 are held out."""

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


class SourceSettings(Section):
    """Source and number of the questions."""

    path: DataPath | None = None
    """Training questions: a Hugging Face id, or a local JSONL, JSON, CSV or Parquet file.  None: the usual data set."""

    test_path: DataPath | None = None
    """Held-out questions, if they are in a separate file."""

    config: str | None = None
    """Configuration name of a data set that has several."""

    train_size: int = Field(default=0, ge=0, le=COUNT)
    """Use the first so many training questions; 0: all."""

    test_size: int = Field(default=0, ge=0, le=COUNT)
    """Use the first so many held-out questions; 0: all."""

    def source(self, usual: DatasetSettings, split: str) -> DatasetSettings | None:
        """Return the data set of a split; None for the held-out split of a local training file."""
        separate = self.test_path if split == "test" else None
        path = separate or self.path
        if path is None:
            return usual
        if not datasets.is_data_file(path):
            return DatasetSettings(path=path, name=self.config)
        return None if split == "test" and separate is None else DatasetSettings(path=path)


def gsm8k(settings: SourceSettings) -> Task:
    """Create GSM8K from rows with ``question`` and ``answer`` (ending in ``#### number``); reward 1 if right."""
    return _task("gsm8k", settings, GSM8K_DATA, _gsm8k_row)


def competition_math(settings: SourceSettings) -> Task:
    """Create MATH from rows with ``problem`` and ``answer`` (LaTeX); reward 1 if math-verify finds them equal."""
    return _task("math", settings, MATH_DATA, _math_row)


def _task(
    name: str,
    settings: SourceSettings,
    usual: DatasetSettings,
    row: Callable[[Mapping[str, Any], int], dict[str, Any]],
) -> Task:
    def made(split: str, count: int) -> Examples:
        source = settings.source(usual, split)
        found = () if source is None else datasets.read(source, split)
        return examples([row(data, index) for index, data in enumerate(islice(found, count or None))], split)

    return Task(
        name=name,
        train=made("train", settings.train_size),
        test=made("test", settings.test_size),
        rewards=(Reward("correct", math_answer, source="seedtune.tasks.builtin.math_answer.math_answer"),),
        gold=lambda example: f"The answer is \\boxed{{{example.columns['answer']}}}.",
        full_marks=1.0,
        answer=normalized_answer,
    )


def _gsm8k_row(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    question = _text(row, "question", index)
    before, mark, final = _text(row, "answer", index).rpartition("####")
    if not mark or not final.strip():
        raise DataError(f"the answer of question {index} does not end in '#### number': {before[-60:]!r}. Add it.")
    return {"prompt": _prompt(question), "answer": final.strip().replace(",", "")}


def _math_row(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    return {"prompt": _prompt(_text(row, "problem", index)), "answer": _text(row, "answer", index)}


def _prompt(question: str) -> list[dict[str, str]]:
    return chat(f"{question.strip()}\n\n{INSTRUCTION}")


def _text(row: Mapping[str, Any], column: str, index: int) -> str:
    """Return the text in a column of a row; raise DataError, listing the columns, if it is missing or blank."""
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"question {index} has no text under {column!r} (it holds {sorted(row)}). Name it {column!r}.")
    return value


GSM8K = TaskKind(
    build=gsm8k,
    settings=SourceSettings,
    what="grade-school word problems (openai/gsm8k)",
    reward="1 for the right final answer",
    sizes=(7473, 1319),
    needs=("datasets", "math_verify"),
)
MATH = TaskKind(
    build=competition_math,
    settings=SourceSettings,
    what="competition mathematics (MATH, MATH-500 held out)",
    reward="1 for an equal final answer",
    sizes=(12000, 500),
    needs=("datasets", "math_verify"),
)
