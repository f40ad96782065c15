"""Rewards of functions, and what they make of completions in this process, at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.config.config import Config
from seedtune.errors import RewardError
from seedtune.rewards.base import Reward, keywords_of
from seedtune.rewards.execution.call import attempt
from seedtune.rewards.sources import build
from seedtune.types import Example


def rewards(given: Any, weights: Sequence[float] | None = None) -> tuple[Reward, ...]:
    """As a `ESTrainer` makes them of functions."""
    found = build.listed(given)
    return build.build(Config.create({"reward_funcs": build.settings_of(found), "reward_weights": weights}), found)


def score(rewards: Sequence[Reward], examples: Sequence[Example], texts: Sequence[str]) -> dict[str, list[float]]:
    """Each reward's values; RewardError with the first fault."""
    names = sorted({name for example in examples for name in example.columns})
    keywords, values = keywords_of(examples, texts, names), {}
    for reward in rewards:
        answer = attempt(reward.function, keywords, len(texts))
        for fault in answer.faults.values():
            raise RewardError(f"the reward function {reward.name!r} {fault.message}.")
        values[reward.name] = answer.values
    return values
