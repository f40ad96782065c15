"""Countdown: an expression of the given numbers, each used exactly once, that equals a target (arXiv 2509.24372).

The puzzles are generated here, by default with three or four numbers.  For example::

    Using the numbers [44, 19, 35], create an equation that equals 98. …
    <think>44 + 19 is 63, and 63 + 35 is 98.</think>
    <answer> 44 + 19 + 35 </answer>
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import accumulate
from typing import Any, Literal

from pydantic import Field, model_validator

from seedtune.rewards.answer_tags import THINK, format_reward, tagged, voted_answer
from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.data.generators import DataRow, Draws, splits
from seedtune.tasks.data.rows import chat
from seedtune.types import Example

LENGTH, DEPTH, DIGITS = 256, 16, 9
"""Limits of an expression: characters, nested brackets, and digits of a number."""
Number = int | Fraction
OPERATIONS: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: Fraction,
}
SIGNS = dict(zip("+-*/", OPERATIONS.values(), strict=True))
_ARITHMETIC = re.compile(r"[-+*/()0-9 \t\r\n]*")
_TWO_MINUS = re.compile(r"(?:^|[-+*/(])\s*-\s*-")
"""Two minus signs before a number."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The value of an expression, and the numbers in it from left to right."""

    value: Number
    numbers: tuple[int, ...]


def value_of(text: str) -> Arithmetic | None:
    """Evaluate sums, differences, products and quotients of whole numbers exactly; None if there is no value.

    The grammar is Python's, without powers, unary plus, and more than one minus sign before a factor.  Longer or
    deeper expressions than the limits, and divisions by zero, have no value either.
    """
    if len(text) > LENGTH or not _ARITHMETIC.fullmatch(text) or _TWO_MINUS.search(text):
        return None
    numbers = re.findall("[0-9]+", text)
    if any(len(number) > DIGITS or number != str(int(number)) for number in numbers):
        return None
    depths = accumulate((character == "(") - (character == ")") for character in text)
    if text.count("(") > DEPTH and max(depths) > DEPTH:
        return None
    try:
        value = _value(ast.parse(" ".join(text.split()), mode="eval").body)
    except (SyntaxError, KeyError, ZeroDivisionError):
        return None
    return Arithmetic(value, tuple(map(int, numbers)))


def _value(node: ast.expr) -> Number:
    """Evaluate a syntax tree; raise KeyError for anything but arithmetic."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp):
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    raise KeyError(type(node))


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
    return Task(
        "countdown",
        *splits("countdown", settings, partial(_puzzle, settings), _identity),
        rewards=(Reward("answer", right_equation), Reward("format", format_reward, 0.1)),
        gold=_gold,
        full_marks=1.1,
        right_from=1.0,
        answer=voted_answer,
    )


def _identity(row: DataRow) -> tuple[int, ...]:
    return (row["target"], *sorted(row["numbers"]))


def _puzzle(settings: CountdownSettings, draws: Draws) -> DataRow | None:
    """Make the row of a puzzle; None if the value of its solution is not an allowed target.

    Two terms at a time, in random order, are combined by a random operation until one is left.
    """
    numbers = [draws.between(1, settings.largest) for _ in range(draws.between(settings.fewest, settings.numbers))]
    terms: list[tuple[Number, str]] = [(number, str(number)) for number in numbers]
    while len(terms) > 1:
        (a, left), (b, right) = (terms.pop(draws.below(len(terms))) for _ in range(2))
        sign = draws.choice("+-*/" if b else "+-*")
        terms.append((SIGNS[sign](a, b), f"({left} {sign} {right})"))
    ((value, text),) = terms
    if value.denominator != 1 or not settings.target_from <= value <= settings.target_to:
        return None
    row: DataRow = {"numbers": numbers, "target": int(value), "solution": text[1:-1]}
    if settings.prompt == "plain":
        return row | {"prompt": PLAIN.format(**row), "begun": THINK}
    return row | {"prompt": chat(QUESTION.format(**row))}


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
