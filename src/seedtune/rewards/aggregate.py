"""What reward functions are given, and the sum of what they return."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from seedtune.rewards.base import Reward
from seedtune.types import Example

FIX = "Fix it, or return None for completions it cannot score"
"""What to do about a reward function that fails."""


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


def _prompt(example: Example) -> Any:
    return example.prompt if isinstance(example.prompt, str) else [dict(message) for message in example.prompt]


def _completion(example: Example, text: str) -> Any:
    return text if isinstance(example.prompt, str) else [{"role": "assistant", "content": text}]
