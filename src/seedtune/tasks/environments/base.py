"""The environment protocol, one instance per conversation, and the reward function that reads its reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from seedtune.errors import RewardError


class Environment(Protocol):
    """TRL's convention: ``reset``, and every other public method is a tool that the model may call.

    These optional members are not tools:

    * ``step(text: str) -> str | None``: receives a whole message of the model and returns the reply, or None to end
      the conversation.  An environment with ``step`` has no tools;
    * ``reward``: the environment's reward, a number or a method that returns one, read after the conversation;
    * ``close()``: called after that.

    An environment must be deterministic given the columns and the messages, or a resumed run differs from the original.
    """

    def reset(self, **columns: Any) -> str | None:
        """Begin a conversation about a row of the data; a returned text is appended to the prompt."""
        ...


EnvironmentFactory = Callable[[], Any]
"""Makes an `Environment`: usually its class."""


def environment_reward(environments: Sequence[Any], **_: Any) -> list[Any]:
    """Return each environment's ``reward``, a number or the result of the method; raise RewardError if it has none."""
    return [_reward(environment) for environment in environments]


def _reward(environment: Any) -> Any:
    found = getattr(environment, "reward", None)
    if found is None:
        raise RewardError(
            f"the environment {type(environment).__name__!r} has no 'reward'. Give it one, a number or a method, "
            "or give reward_funcs that take environments=[…]."
        )
    return found() if callable(found) else found
