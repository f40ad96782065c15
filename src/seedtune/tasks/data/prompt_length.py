"""Reject, truncate or drop prompts that are too long for the model, before training.

The data are changed, not the engine's input: rewards, samples and the ledger's digest hold what the model reads.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from seedtune.errors import DataError
from seedtune.tasks.base import Task
from seedtune.types import Example, Message

log = logging.getLogger("seedtune")

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


def _fit(rows: Sequence[Example], limit: Limit, measure: Measure, split: str) -> Sequence[Example]:
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


def _may_be_long(rows: Sequence[Example], tokens: int, measure: Measure) -> list[int]:
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

    def fits(candidate: Example) -> bool:
        return measure([candidate])[0] <= limit.tokens

    row = _without_oldest(row, fits)
    if fits(row):
        return row
    size = len(row.prompt if isinstance(row.prompt, str) else row.prompt[_head(row.prompt)]["content"])
    cuts = range(0, size, max(1, size // 256))
    place = bisect_left(cuts, True, key=lambda count: fits(_cut(row, count)))
    if place == len(cuts):
        raise DataError(
            f"prompt {row.id} cannot be shortened to {limit.tokens} tokens ({limit.why}): what stands around its text "
            "takes them all. Raise max_prompt_length, or shorten system messages."
        )
    return _cut(row, cuts[place])


def _without_oldest(row: Example, fits: Callable[[Example], bool]) -> Example:
    """Drop the oldest messages, with the answers and tool results that follow them, until the prompt fits.

    At least the last message and the system messages at the beginning stay.
    """
    prompt = row.prompt
    if isinstance(prompt, str):
        return row
    head, last = _head(prompt), len(prompt) - 1
    starts = [i for i in range(head, last) if i == head or prompt[i]["role"] not in ("assistant", "tool")]
    shorter = [replace(row, prompt=(*prompt[:head], *prompt[start:])) for start in (*starts, last)]
    return next(filter(fits, shorter[:-1]), shorter[-1])


def _head(prompt: Sequence[Message]) -> int:
    """Return the number of system messages at the beginning; the last message is not counted."""
    return next((place for place, m in enumerate(prompt[:-1]) if m["role"] != "system"), len(prompt) - 1)


def _cut(row: Example, count: int) -> Example:
    """Return the example without the first ``count`` characters of its oldest message that is not a system message."""
    if isinstance(row.prompt, str):
        return replace(row, prompt=row.prompt[count:])
    head = _head(row.prompt)
    oldest = {**row.prompt[head], "content": row.prompt[head]["content"][count:]}
    return replace(row, prompt=(*row.prompt[:head], oldest, *row.prompt[head + 1 :]))
