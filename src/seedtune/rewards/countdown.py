"""Countdown: an equation of given numbers, each used exactly once, that is worth a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.rewards.answer_tags import tagged
from seedtune.rewards.arithmetic import evaluate
from seedtune.rewards.completions import text_of


def right_equation(
    completions: Sequence[Any], numbers: Sequence[Sequence[int]], target: Sequence[int], **_: Any
) -> list[float]:
    """1 if the last ``<answer>`` is arithmetic with exactly the ``numbers`` and worth ``target``, else 0."""
    return [float(reaches(tagged(text_of(c)), n, t)) for c, n, t in zip(completions, numbers, target, strict=True)]


def reaches(expression: str | None, numbers: Sequence[int], target: int) -> bool:
    """Whether the expression uses each number once and is worth the target, exactly."""
    found = None if expression is None else evaluate(expression)
    return found is not None and found.value == target and sorted(found.numbers) == sorted(numbers)
