"""Rewards on the length of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.rewards.completions import text_of


def length_error(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """−|len(completion) − len(answer)| in characters, over the completion only (arXiv 2509.24372)."""
    return [-float(abs(len(text_of(c)) - len(a))) for c, a in zip(completions, answer, strict=True)]
