"""The text of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """The text of a completion that is text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)
