"""The keyword arguments of reward functions, and the weighted sum of their values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from seedtune.rewards.base import Reward
from seedtune.types import Example

FIX = "Fix it, or return None for completions it cannot score"
"""The fix that error messages suggest for a failing reward function."""


def total(rewards: Sequence[Reward], values: Mapping[str, Sequence[float]]) -> list[float]:
    """Return Σ weight·value over the rewards with a finite value, per completion; NaN where there is none."""
    weighted = [[reward.weight * value for value in values[reward.name]] for reward in rewards]
    return [_sum(parts) for parts in zip(*weighted, strict=True)]


def _sum(parts: Sequence[float]) -> float:
    """Sum the finite parts; NaN if there are none or the sum overflows a float."""
    known = [part for part in parts if math.isfinite(part)]
    try:
        return math.fsum(known) if known else math.nan
    except OverflowError:
        return math.nan


def keywords_of(examples: Sequence[Example], texts: Sequence[str], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the keyword arguments of a reward function: the columns ``names``, ``prompts`` and ``completions``."""
    columns = {name: [example.columns.get(name) for example in examples] for name in names}
    completions = [_completion(example, text) for example, text in zip(examples, texts, strict=True)]
    return {**columns, "prompts": [_prompt(example) for example in examples], "completions": completions}


def column_names(examples: Sequence[Example]) -> list[str]:
    """Return the sorted names of all columns that occur in the examples."""
    return sorted({name for example in examples for name in example.columns})


def _prompt(example: Example) -> Any:
    return example.prompt if isinstance(example.prompt, str) else [dict(message) for message in example.prompt]


def _completion(example: Example, text: str) -> Any:
    return text if isinstance(example.prompt, str) else [{"role": "assistant", "content": text}]
