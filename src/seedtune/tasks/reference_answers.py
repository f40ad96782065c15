"""Reference answers, which log-probability objectives read from the columns of a row."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seedtune.config.config import Config
from seedtune.errors import DataError, RewardError
from seedtune.tasks.base import Task
from seedtune.types import Example


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """The reference answers of a prompt, and the index of the right one."""

    answers: tuple[str, ...]
    right: int = 0


def reference_answers(config: Config, example: Example) -> ReferenceAnswers:
    """Read a row's answer (``logprob``), or its choices and which is right (``choice_accuracy``).

    Raises DataError with the row and the column that is missing or of the wrong type.
    """
    names = config.likelihood
    answer = _column(example, names.answer_column)
    if config.objective == "logprob":
        if not isinstance(answer, str) or not answer:
            raise _wrong(example, names.answer_column, answer, "a text that is not empty")
        return ReferenceAnswers((answer,))
    choices = _column(example, names.choices_column)
    listed = isinstance(choices, Sequence) and not isinstance(choices, str) and len(choices) > 1
    if not listed or not all(isinstance(choice, str) and choice for choice in choices):
        raise _wrong(example, names.choices_column, choices, "a list of two texts or more, none of them empty")
    right = _place(answer, choices)
    if right is None:
        wanted = f"a choice's text, its index (from 0 to {len(choices) - 1}) or its letter (from A)"
        raise _wrong(example, names.answer_column, answer, wanted)
    return ReferenceAnswers(tuple(choices), right)


def _place(answer: Any, choices: Sequence[str]) -> int | None:
    """Return the index of the choice that ``answer`` names; a text that is a choice is never read as a letter."""
    if answer in choices:
        return choices.index(answer)
    if isinstance(answer, str) and len(answer) == 1:
        answer = string.ascii_uppercase.find(answer)
    named = isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices)
    return answer if named else None


def scored_by_the_engine(**_: Any) -> list[float | None]:
    """Placeholder reward of log-probability objectives, which the engine scores; raises RewardError if called."""
    raise RewardError("log-probability objectives are scored by the engine, not from text. Use objective=mean.")


def scores_itself(task: Task) -> bool:
    """Whether a task's rewards are log-probabilities of reference answers."""
    return any(reward.function is scored_by_the_engine for reward in task.rewards)


def _column(example: Example, name: str) -> Any:
    if name not in example.columns:
        raise DataError(
            f"row {example.id} has no column {name!r} (it holds {sorted(example.columns)}). Name it under likelihood "
            "in the configuration, for example likelihood.answer_column=target."
        )
    return example.columns[name]


def _wrong(example: Example, name: str, value: Any, wanted: str) -> DataError:
    return DataError(f"row {example.id}: the column {name!r} is {value!r}. Give {wanted}.")
