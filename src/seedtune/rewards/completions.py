"""Extracting the text of a completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """Return the text of a completion, which is a string or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)
