"""Countdown: an expression of the given numbers, each used exactly once, that equals a target (arXiv 2509.24372).

The puzzles are generated here, by default with three or four numbers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, model_validator

from seedtune.rewards.answer_tags import THINK, answer_said, format_reward, tagged
from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.builtin.mathematics.arithmetic import LENGTH, OPERATIONS, value_of
from seedtune.tasks.data.generators import DataRow, Draws, splits
from seedtune.tasks.data.rows import examples
from seedtune.types import Example


def right_equation(
    completions: Sequence[Any], numbers: Sequence[Sequence[int]], target: Sequence[int], **_: Any
) -> list[float]:
    """Return 1 if the last ``<answer>`` is arithmetic with exactly the ``numbers`` and equals ``target``, else 0."""
    return [float(reaches(tagged(text_of(c)), n, t)) for c, n, t in zip(completions, numbers, target, strict=True)]


def reaches(expression: str | None, numbers: Sequence[int], target: int) -> bool:
    """Whether the expression uses each number exactly once and equals the target."""
    found = None if expression is None else value_of(expression)
    return found is not None and found.value == target and sorted(found.numbers) == sorted(numbers)


QUESTION = (
    "Using the numbers {numbers}, create an equation that equals {target}. You can use basic arithmetic operations "
    "(+, -, *, /) and each number can only be used once. Show your work in <think> </think> tags. And return the "
    "final answer in <answer> </answer> tags, for example <answer> (1 + 2) / 3 </answer>."
)
PLAIN = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer.\n"
    f"User: {QUESTION}\nAssistant: Let me solve this step by step.\n{THINK}"
)


class CountdownSettings(Sizes):
    """Puzzles of ``fewest`` to ``numbers`` numbers."""

    numbers: int = Field(default=4, ge=2, le=8)
    """Most numbers in a puzzle."""

    fewest: int = Field(default=3, ge=2, le=8)
    """Fewest numbers in a puzzle."""

    largest: int = Field(default=99, ge=1, le=9999)
    """Largest number; the smallest is 1."""

    target_from: int = Field(default=10, ge=0, le=99999)
    """Smallest target."""

    target_to: int = Field(default=99, ge=1, le=99999)
    """Largest target."""

    prompt: Literal["chat", "plain"] = "chat"
    """``plain``: a text prompt for a model without a chat template, which starts the reply with ``<think>``."""

    @model_validator(mode="after")
    def _in_order(self) -> CountdownSettings:
        if self.fewest > self.numbers:
            raise ValueError(
                f"fewest={self.fewest} is more than numbers={self.numbers}: give task_args.fewest={self.numbers}, "
                "or more numbers"
            )
        if self.target_from > self.target_to:
            raise ValueError(f"target_from={self.target_from} is more than target_to={self.target_to}: swap them")
        return self


def countdown(settings: CountdownSettings) -> Task:
    """Create solvable puzzles; reward: right equation + 0.1 · format."""

    def make(draws: Draws) -> tuple[Hashable, DataRow] | None:
        return _puzzle(draws, settings)

    train, test = splits(make, settings, "countdown")
    return Task(
        name="countdown",
        train=examples(train, "train"),
        test=examples(test, "test"),
        rewards=(Reward("answer", right_equation), Reward("format", format_reward, 0.1)),
        gold=_gold,
        full_marks=1.1,
        right_from=1.0,
        answer=answer_said,
    )


def _puzzle(draws: Draws, settings: CountdownSettings) -> tuple[Hashable, DataRow] | None:
    """Make (identity, row) of a puzzle; None if the value of its solution is not an allowed target."""
    numbers = [draws.between(1, settings.largest) for _ in range(draws.between(settings.fewest, settings.numbers))]
    value, solution = _combined(draws, numbers)
    if value.denominator != 1 or not settings.target_from <= value <= settings.target_to or len(solution) > LENGTH:
        return None
    target = int(value)
    row: DataRow = {"numbers": numbers, "target": target, "solution": solution}
    if settings.prompt == "plain":
        row |= {"prompt": PLAIN.format(numbers=numbers, target=target), "begun": THINK}
    else:
        row["prompt"] = [{"role": "user", "content": QUESTION.format(numbers=numbers, target=target)}]
    return (tuple(sorted(numbers)), target), row


def _combined(draws: Draws, numbers: list[int]) -> tuple[Fraction, str]:
    """Combine all numbers, two terms at a time in random order with random operators; return value and expression."""
    terms = [(Fraction(number), str(number)) for number in numbers]
    while len(terms) > 1:
        (a, left), (b, right) = (terms.pop(draws.below(len(terms))) for _ in range(2))
        operator = draws.choice("+-*/" if b else "+-*")
        terms.append((OPERATIONS[operator](a, b), f"({left} {operator} {right})"))
    value, text = terms[0]
    return value, text[1:-1]


def _gold(example: Example) -> str:
    start = "" if "begun" in example.columns else THINK
    return f"{start}I combine the numbers.</think>\n<answer> {example.columns['solution']} </answer>"


KIND = TaskKind(
    build=countdown,
    settings=CountdownSettings,
    what="reach a number by arithmetic with given numbers",
    reward="right equation + 0.1 · format",
    sizes=(2000, 200),
)
