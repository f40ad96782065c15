"""Validating a task: its gold answers must get full marks, empty answers none, and no wrong answer more than gold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seedtune.errors import DataError
from seedtune.rewards.scoring import score, total
from seedtune.settings import ConversationSettings
from seedtune.tasks.base import Task
from seedtune.types import Example

TOLERANCE = 1e-9
LUCK = 0.9
"""Share of full marks from which answers that are wrong on purpose show a reward that anything satisfies."""
COLUMNS = ("gold", "answer")
"""Columns that are taken for gold answers if a task does not say."""


@dataclass(frozen=True, slots=True)
class Check:
    """What one kind of answer earned, over all items; ``broken`` says what is wrong, or is empty."""

    what: str
    expected: str
    items: int
    least: float
    mean: float
    most: float
    unscored: int
    full: int
    seconds: float
    broken: str


def validate(task: Task, *, items: int = 400, gold: str | None = None) -> list[Check]:
    """Score gold, empty and mutated answers on up to ``items`` examples of both splits (held-out ones first).

    Gold answers are the task's own, or the column ``gold``.  DataError if there are neither.
    """
    data = [*task.test, *task.train][:items]
    if not data:
        raise DataError(f"task {task.name!r} has no examples to validate.")
    golden = _golden(task, data, gold)
    checks = [_gold_check(task, data, golden)]
    checks.append(_empty_check(task, data))
    return checks + [
        _wrong_check(task, data, (what, [mutate(index, golden, data) for index in range(len(data))]), golden)
        for what, mutate in MUTATIONS.items()
    ]


def _golden(task: Task, data: Sequence[Example], column: str | None) -> list[str]:
    if task.gold is not None and column is None:
        return [task.gold(example) for example in data]
    names = COLUMNS if column is None else (column,)
    found = next((name for name in names if all(name in example.columns for example in data)), None)
    if found is None:
        held = sorted({name for example in data for name in example.columns})
        raise DataError(
            f"task {task.name!r} has no gold answers: its columns are {held}. Add a column 'gold' with a completion "
            "that deserves full marks, name it with --gold COLUMN, or give Task(gold=function)."
        )
    return [str(example.columns[found]) for example in data]


def _swapped(index: int, golden: Sequence[str], _: Sequence[Example]) -> str:
    """The gold answer of another item, one that differs if there is any near."""
    near = (golden[(index + step) % len(golden)] for step in range(1, min(50, len(golden))))
    return next((other for other in near if other != golden[index]), "?")


def _echoed(index: int, _: Sequence[str], data: Sequence[Example]) -> str:
    prompt = data[index].prompt
    return prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)


MUTATIONS: dict[str, Callable[[int, Sequence[str], Sequence[Example]], str]] = {
    "blanks": lambda *_: " \n\t ",
    "another item's gold": _swapped,
    "the prompt again": _echoed,
    "gold, cut in half": lambda index, golden, _: golden[index][: len(golden[index]) // 2],
    "gold backwards": lambda index, golden, _: golden[index][::-1],
    "gold 20 times": lambda index, golden, _: (golden[index] + "\n") * 20,
    "I do not know.": lambda *_: "I do not know.",
    "100,000 brackets": lambda *_: "(" * 100_000,
    "control characters": lambda index, golden, _: "\x00\x1b[2J\ud7ff🙂٣" + golden[index][:3],
}
"""Answers that are wrong, or may be right by luck (another item's), by name."""
MAY_BE_RIGHT = ("gold 20 times", "gold backwards")
"""Mutations that a sound reward may give full marks: the answer is there, or as long as it should be."""


def _scored(task: Task, data: Sequence[Example], texts: Sequence[str]) -> tuple[list[float], float]:
    begun = time.perf_counter()
    if task.environment is not None:
        pairs = zip(data, texts, strict=True)
        data = [replace(e, columns={**e.columns, "environments": _played(task, e, text)}) for e, text in pairs]
    values = total(task.rewards, score(task.rewards, data, texts))
    return values, time.perf_counter() - begun


def _played(task: Task, example: Example, text: str) -> Any:
    """An environment after a conversation in which the model says the same in every turn."""
    assert task.environment is not None
    environment = task.environment()
    environment.reset(**example.columns)
    if getattr(environment, "step", None) is None:
        raise DataError(f"task {task.name!r} has an environment with tools, which a single text cannot play.")
    turns = range(ConversationSettings().max_turns)
    next((turn for turn in turns if environment.step(text) is None), None)
    return environment


def _gold_check(task: Task, data: Sequence[Example], golden: Sequence[str]) -> Check:
    values, seconds = _scored(task, data, golden)
    full = task.full_marks
    wrong = [place for place, value in enumerate(values) if not _is_full(value, full)]
    broken = ""
    if wrong:
        first = wrong[0]
        broken = f"{len(wrong)} of {len(data)} gold answers got less, first {golden[first][:80]!r}: {values[first]:g}"
    elif _scored(task, data, golden)[0] != values:
        broken = "scored twice, the same answers got different marks"
    return _check(
        ("gold", "any number" if full is None else f"{full:g}"), values, _reached(values, full), seconds, broken
    )


def _is_full(value: float, full: float | None) -> bool:
    return math.isfinite(value) and (full is None or abs(value - full) <= TOLERANCE)


def _reached(values: Sequence[float], full: float | None) -> int:
    return sum(_is_full(value, full) for value in values)


def _empty_check(task: Task, data: Sequence[Example]) -> Check:
    values, seconds = _scored(task, data, [""] * len(data))
    high = [value for value in values if value > task.no_marks + TOLERANCE]
    broken = f"{len(high)} of {len(data)} got more, up to {max(high):g}" if high and task.full_marks is not None else ""
    expected = "not more than gold" if task.full_marks is None else f"at most {task.no_marks:g}, or none"
    return _check(("empty", expected), values, 0, seconds, broken)


def _wrong_check(
    task: Task, data: Sequence[Example], answers: tuple[str, Sequence[str]], golden: Sequence[str]
) -> Check:
    what, texts = answers
    values, seconds = _scored(task, data, texts)
    best = _scored(task, data, golden)[0] if task.full_marks is None else [task.full_marks] * len(data)
    pairs = list(zip(values, best, strict=True))
    above = sum(value > most + TOLERANCE for value, most in pairs)
    full = sum(math.isfinite(value) and value >= most - TOLERANCE for value, most in pairs)
    broken = ""
    if above:
        broken = f"{above} of {len(data)} got more than gold"
    elif what not in MAY_BE_RIGHT and full >= LUCK * len(data):
        broken = f"{full} of {len(data)} got full marks"
    return _check((what, "less than gold"), values, full, seconds, broken)


def _check(named: tuple[str, str], values: Sequence[float], full: int, seconds: float, broken: str) -> Check:
    known = [value for value in values if math.isfinite(value)] or [math.nan]
    mean = sum(known) / len(known)
    unscored = sum(not math.isfinite(value) for value in values)
    return Check(*named, len(values), min(known), mean, max(known), unscored, full, seconds, broken)
