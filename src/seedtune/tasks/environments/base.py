"""An environment: what a model talks to for several turns, one instance for each conversation.

An environment's own reward, as a reward function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from seedtune.errors import RewardError


class Environment(Protocol):
    """TRL's convention: ``reset``, and every other public method is a tool that the model may call.

    It may also have, and these are no tools:

    * ``step(text: str) -> str | None``: takes a whole message of the model and returns what it is told, None to end the
      conversation.  Then nothing is a tool;
    * ``reward``: its own reward, a number or a method that returns one, read when the conversation is over;
    * ``close()``: called after that.

    What it does must follow from the columns and the messages alone, or a resumed run is another run.
    """

    def reset(self, **columns: Any) -> str | None:
        """Begin a conversation about a row of the data; what is returned goes behind the prompt."""
        ...


EnvironmentFactory = Callable[[], Any]
"""Makes an `Environment`: usually its class."""


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
