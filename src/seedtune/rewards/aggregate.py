"""Scoring completions: what reward functions are given, and the sum of what they return."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from seedtune.errors import RewardError
from seedtune.rewards.base import Reward
from seedtune.rewards.execution.call import call, raised
from seedtune.types import Example

FIX = "Fix it, or return None for completions it cannot score"
"""What to do about a reward function that fails."""


def score(rewards: Sequence[Reward], examples: Sequence[Example], texts: Sequence[str]) -> dict[str, list[float]]:
    """Each reward's value for every (example, completion text), NaN where it does not apply; in this process, at once.

    Raises RewardError naming the function when it raises or returns anything but one finite number, NaN or None each.
    Runs use a `Scorer` instead, whose calls may fail.
    """
    keywords = keywords_of(examples, texts, column_names(examples))
    return {reward.name: _values(reward, keywords, len(texts)) for reward in rewards}


def total(rewards: Sequence[Reward], values: Mapping[str, Sequence[float]]) -> list[float]:
    """Σ weight·value over the rewards that apply; NaN where none does."""
    weighted = [[reward.weight * value for value in values[reward.name]] for reward in rewards]
    return [_sum(parts) for parts in zip(*weighted, strict=True)]


def _sum(parts: Sequence[float]) -> float:
    """NaN, too, where finite rewards add up to more than a float holds."""
    known = [part for part in parts if math.isfinite(part)]
    try:
        return math.fsum(known) if known else math.nan
    except OverflowError:
        return math.nan


def keywords_of(examples: Sequence[Example], texts: Sequence[str], names: Sequence[str]) -> dict[str, list[Any]]:
    """What a reward function is called with: the columns of these ``names``, prompts and completions."""
    columns = {name: [example.columns.get(name) for example in examples] for name in names}
    completions = [_completion(example, text) for example, text in zip(examples, texts, strict=True)]
    return {**columns, "prompts": [_prompt(example) for example in examples], "completions": completions}


def column_names(examples: Sequence[Example]) -> list[str]:
    """The columns that any of the examples has."""
    return sorted({name for example in examples for name in example.columns})


def _values(reward: Reward, keywords: dict[str, list[Any]], count: int) -> list[float]:
    try:
        answer = call(reward.function, keywords, count)
    except Exception as error:  # the named boundary: user code may raise anything
        raise RewardError(f"the reward function {reward.name!r} {raised(error)}. {FIX}.") from error
    for fault in answer.faults.values():
        raise RewardError(f"the reward function {reward.name!r} {fault.message}.")
    return answer.values


def _prompt(example: Example) -> Any:
    return example.prompt if isinstance(example.prompt, str) else [dict(message) for message in example.prompt]


def _completion(example: Example, text: str) -> Any:
    return text if isinstance(example.prompt, str) else [{"role": "assistant", "content": text}]
