"""Extract the ``<answer>`` of a completion, and score its ``<think>``/``<answer>`` format.

All functions take time linear in the length of the text: models write megabytes of tags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune.rewards.base import text_of

OPEN, CLOSE = "<answer>", "</answer>"
THINK, THOUGHT = "<think>", "</think>"
READ = 200_000
"""Longest completion that is read, in characters; a longer one has no answer."""


def tagged(text: str) -> str | None:
    """Return the stripped text between the last ``<answer>`` and its ``</answer>``; None if missing or not closed."""
    start = text.rfind(OPEN) if len(text) <= READ else -1
    end = text.find(CLOSE, start + len(OPEN)) if start >= 0 else -1
    return text[start + len(OPEN) : end].strip() if end >= 0 else None


def voted_answer(text: str) -> str:
    """Return the `tagged` answer, or an empty string, for majority votes."""
    return tagged(text) or ""


def format_marks(text: str) -> float:
    """Return 1 for ``<think>…</think><answer>…</answer>`` and nothing else.

    Otherwise the sum of 0.1 for a closed ``<think>`` and 0.5 for a closed ``<answer>``.
    """
    if len(text) > READ:
        return 0.0
    if _is_whole(text.strip()):
        return 1.0
    thought = 0 <= text.find(THINK) < text.rfind(THOUGHT)
    answered = 0 <= text.find(OPEN) < text.rfind(CLOSE)
    return 0.1 * thought + 0.5 * answered


def _is_whole(text: str) -> bool:
    if not (text.startswith(THINK) and text.endswith(CLOSE)):
        return False
    if any(text.count(tag) != 1 for tag in (THINK, THOUGHT, OPEN, CLOSE)):
        return False
    return not text[text.find(THOUGHT) + len(THOUGHT) : text.find(OPEN)].strip() and text.find(THOUGHT) < text.find(
        OPEN
    )


def format_reward(completions: Sequence[Any], begun: Sequence[str] | None = None, **_: Any) -> list[float]:
    """Return `format_marks` of each completion; ``begun`` is the start of the reply that the prompt already holds."""
    starts = begun if begun is not None else [""] * len(completions)
    return [format_marks((start or "") + text_of(c)) for c, start in zip(completions, starts, strict=True)]
