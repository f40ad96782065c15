"""Rewards on the length of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """The text of a completion that is text or a list of messages."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message["content"]) for message in completion)


def length_error(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """−|len(completion) − len(answer)| in characters, over the completion only (arXiv 2509.24372)."""
    return [-float(abs(len(text_of(c)) - len(a))) for c, a in zip(completions, answer, strict=True)]
