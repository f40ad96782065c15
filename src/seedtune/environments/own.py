"""An environment's own reward, as a reward function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.errors import RewardError


def environment_reward(environments: Sequence[Any], **_: Any) -> list[Any]:
    """``reward`` of each: a number, or what the method returns; RewardError where there is none."""
    return [_reward(environment) for environment in environments]


def _reward(environment: Any) -> Any:
    found = getattr(environment, "reward", None)
    if found is None:
        raise RewardError(
            f"the environment {type(environment).__name__!r} has no 'reward'. Give it one, a number or a method, "
            "or give reward_funcs that take environments=[…]."
        )
    return found() if callable(found) else found
