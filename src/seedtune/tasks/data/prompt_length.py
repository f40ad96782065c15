"""Reject, truncate or drop prompts that are too long for the model, before training.

The data are changed, not the engine's input: rewards, samples and the ledger's digest hold what the model reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from seedtune.errors import DataError
from seedtune.tasks.base import Task
from seedtune.types import Example, Message

log = logging.getLogger("seedtune")

Examples = Sequence[Example]
Measure = Callable[[Sequence[Example]], list[int]]
"""Counts the tokens of each example's prompt as an engine passes it to the model."""

FRAME = 64
"""Upper bound of a chat template's tokens around one message; only prompts that may be long are tokenized."""

_FIX = "Shorten it, raise max_prompt_length, or set prompt_truncation to left (cut beginnings) or drop (no such rows)."


@dataclass(frozen=True, slots=True)
class Limit:
    """The token limit of prompts, its reason, and the policy for longer ones (``error``, ``left``, ``drop``)."""

    tokens: int
    why: str
    policy: str


def fit(task: Task, limit: Limit, measure: Measure) -> Task:
    """Return the task with prompts of at most ``limit.tokens`` tokens.

    Raises DataError for longer prompts under the policy ``error``, for prompts that cannot be shortened, and if no
    training row is left.
    """
    train = _fit(task.train, limit, measure, "training")
    if task.train and not train:
        raise DataError(f"every training prompt has more than {limit.tokens} tokens ({limit.why}). {_FIX}")
    return replace(task, train=train, test=_fit(task.test, limit, measure, "held-out"))


def _fit(rows: Examples, limit: Limit, measure: Measure, split: str) -> Examples:
    suspects = _may_be_long(rows, limit.tokens, measure)
    lengths = measure([rows[place] for place in suspects])
    long = {place: count for place, count in zip(suspects, lengths, strict=True) if count > limit.tokens}
    if not long:
        return rows
    if limit.policy == "error":
        place, count = next(iter(long.items()))
        raise DataError(
            f"prompt {rows[place].id} of the {split} data has {count} tokens, more than {limit.tokens} ({limit.why}); "
            f"{len(long)} of {len(rows)} prompts are too long. {_FIX}"
        )
    done = "left out" if limit.policy == "drop" else "shortened from the left"
    log.warning("%d of %d %s prompts are %s: more than %d tokens", len(long), len(rows), split, done, limit.tokens)
    if limit.policy == "drop":
        return tuple(row for place, row in enumerate(rows) if place not in long)
    return tuple(_shortened(row, limit, measure) if place in long else row for place, row in enumerate(rows))


def _may_be_long(rows: Examples, tokens: int, measure: Measure) -> list[int]:
    """Return the indices of prompts that may be too long: a token has at least one byte; the template is measured."""
    if not rows:
        return []
    sizes = [_size(row) for row in rows]
    frame = measure([rows[sizes.index(min(sizes))]])[0]
    return [place for place, size in enumerate(sizes) if size + frame > tokens]


def _size(row: Example) -> int:
    if isinstance(row.prompt, str):
        return len(row.prompt.encode("utf-8", "replace"))
    return sum(FRAME + len(str(message["content"]).encode("utf-8", "replace")) for message in row.prompt)


def _shortened(row: Example, limit: Limit, measure: Measure) -> Example:
    """Drop the oldest messages (never system messages), then cut the beginning of the oldest remaining one."""
    head, turns = _parts(row)
    while len(turns) > 1 and measure([_joined(row, head, turns)])[0] > limit.tokens:
        turns = _without_oldest(turns)
    text = turns[0]["content"]

    def cut(start: int) -> Example:
        return _joined(row, head, ({**turns[0], "content": text[start:]}, *turns[1:]))

    fits, too_long = len(text), 0
    if measure([cut(0)])[0] <= limit.tokens:
        return cut(0)
    while fits - too_long > max(1, len(text) // 256):
        middle = (fits + too_long) // 2
        fits, too_long = (middle, too_long) if measure([cut(middle)])[0] <= limit.tokens else (fits, middle)
    if fits == len(text):
        raise DataError(
            f"prompt {row.id} cannot be shortened to {limit.tokens} tokens ({limit.why}): what stands around its text "
            "takes them all. Raise max_prompt_length, or shorten system messages."
        )
    return cut(fits)


def _parts(row: Example) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Split a prompt into (leading system messages, other messages); plain text is one message without a role."""
    if isinstance(row.prompt, str):
        return (), ({"content": row.prompt},)
    count = next((place for place, m in enumerate(row.prompt) if m["role"] != "system"), len(row.prompt) - 1)
    return row.prompt[:count], row.prompt[count:]


def _without_oldest(turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """Drop the first message, and the answers and tool results that follow it."""
    rest = turns[1:]
    while len(rest) > 1 and rest[0].get("role") in ("assistant", "tool"):
        rest = rest[1:]
    return rest


def _joined(row: Example, head: tuple[Message, ...], turns: tuple[Message, ...]) -> Example:
    if isinstance(row.prompt, str):
        return replace(row, prompt=turns[0]["content"])
    return replace(row, prompt=(*head, *turns))
