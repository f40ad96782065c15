"""GSM8K: grade-school word problems (arXiv 2110.14168), read from a hub or local files."""

from __future__ import annotations

from seedtune.errors import DataError
from seedtune.rewards.math_answer import answer_said, math_answer
from seedtune.tasks.base import Kind, Reward, Task
from seedtune.tasks.data import examples
from seedtune.tasks.sources import Row, SourceSettings, chat, column, rows
from seedtune.types import Example

SOURCE = ("openai/gsm8k", "main")
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."


def gsm8k(settings: SourceSettings) -> Task:
    """Rows with ``question`` and ``answer`` (which ends in ``#### number``); reward 1 for the right final answer."""
    train, test = rows(settings, SOURCE)
    return Task(
        name="gsm8k",
        train=examples(_prompts(train), "train"),
        test=examples(_prompts(test), "test"),
        rewards=(Reward("correct", math_answer, source="seedtune.rewards.math_answer.math_answer"),),
        gold=boxed_answer,
        full_marks=1.0,
        answer=answer_said,
    )


def boxed_answer(example: Example) -> str:
    r"""The right answer in ``\boxed{}``."""
    return f"The answer is \\boxed{{{example.columns['answer']}}}."


def _prompts(found: list[Row]) -> list[dict[str, object]]:
    pairs = [(column(row, "question", index), _final(row, index)) for index, row in enumerate(found)]
    return chat(pairs, INSTRUCTION)


def _final(row: Row, index: int) -> str:
    before, mark, final = column(row, "answer", index).rpartition("####")
    if not mark or not final.strip():
        raise DataError(f"the answer of question {index} does not end in '#### number': {before[-60:]!r}. Add it.")
    return final.strip().replace(",", "")


KIND = Kind(
    build=gsm8k,
    settings=SourceSettings,
    what="grade-school word problems (openai/gsm8k)",
    reward="1 for the right final answer",
    sizes=(7473, 1319),
    needs=("datasets", "math_verify"),
)
