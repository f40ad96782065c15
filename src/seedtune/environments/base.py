"""An environment: what a model talks to for several turns, one instance for each conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


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
