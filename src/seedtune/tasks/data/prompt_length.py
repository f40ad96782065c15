"""Reject or drop prompts that the model cannot read, and reject, truncate or drop longer ones, before training.

The data are changed, not the engine's input: rewards, samples and the ledger's digest hold what the model reads.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from seedtune.errors import DataError
from seedtune.tasks.base import Task
from seedtune.types import Example, Message

log = logging.getLogger("seedtune")

Measure = Callable[[Sequence[Example]], list[int]]
"""Counts the tokens of each example's prompt as an engine passes it to the model; DataError if it cannot be read."""

_FIX = "Shorten it, raise max_prompt_length, or set prompt_truncation to left (cut beginnings) or drop (no such rows)."


@dataclass(frozen=True, slots=True)
class Limit:
    """The token limit of prompts, its reason, and the policy for longer ones (``error``, ``left``, ``drop``)."""

    tokens: float = math.inf
    why: str = ""
    policy: str = "error"


def fit(task: Task, limit: Limit, measure: Measure) -> Task:
    """Return the task with prompts that the model can read, of at most ``limit.tokens`` tokens.

    Raises DataError for longer prompts under the policy ``error``, for prompts that cannot be shortened or read (unless
    they are dropped), and if no training row is left.
    """
    train = _fit(task.train, limit, measure, "training")
    if task.train and not train:
        _fit(task.train, replace(limit, policy="error"), measure, "training")  # raises: says why the first is left out
    whole = (place for place in range(len(task.train) + len(task.dropped)) if place not in task.dropped)
    dropped = {at: row for place, (at, row) in enumerate(zip(whole, task.train, strict=True)) if place not in train}
    test = _fit(task.test, limit, measure, "held-out")
    train_rows, test_rows = tuple(train.values()), tuple(test.values())
    return replace(task, train=train_rows, test=test_rows, dropped={**task.dropped, **dropped})


def _fit(rows: Sequence[Example], limit: Limit, measure: Measure, split: str) -> dict[int, Example]:
    """Return the fitted rows that are kept, by their places in ``rows``."""
    found = _measured(rows, measure)
    refused = {place: error for place, error in enumerate(found) if isinstance(error, DataError)}
    long = {place: n for place, n in enumerate(found) if not isinstance(n, DataError) and n > limit.tokens}
    if refused and limit.policy != "drop":
        place, error = next(iter(refused.items()))
        raise DataError(
            f"row {rows[place].id} of the {split} data: {error} So it is with {len(refused)} of {len(rows)} rows; to "
            "leave them out, set prompt_truncation=drop."
        )
    if long and limit.policy == "error":
        place, count = next(iter(long.items()))
        raise DataError(
            f"prompt {rows[place].id} of the {split} data has {count} tokens, more than {limit.tokens} ({limit.why}); "
            f"{len(long)} of {len(rows)} prompts are too long. {_FIX}"
        )
    if refused:
        log.warning(
            "%d of %d %s prompts are left out: %s", len(refused), len(rows), split, next(iter(refused.values()))
        )
    if long:
        done = "left out" if limit.policy == "drop" else "shortened from the left"
        log.warning("%d of %d %s prompts are %s: more than %d tokens", len(long), len(rows), split, done, limit.tokens)
    if limit.policy == "drop":
        return {place: row for place, row in enumerate(rows) if place not in refused.keys() | long.keys()}
    return {place: _shortened(row, limit, measure) if place in long else row for place, row in enumerate(rows)}


def _measured(rows: Sequence[Example], measure: Measure) -> list[int | DataError]:
    """Return the tokens of each prompt, or the error of one that cannot be read, which is found by halving."""
    try:
        return [*measure(rows)]
    except DataError as error:
        half = len(rows) // 2
        return [*_measured(rows[:half], measure), *_measured(rows[half:], measure)] if half else [error]


def _shortened(row: Example, limit: Limit, measure: Measure) -> Example:
    """Drop the oldest messages (never system messages), then cut the beginning of the oldest remaining one."""

    def fits(candidate: Example) -> bool:
        return measure([candidate])[0] <= limit.tokens

    row = _without_oldest(row, fits)
    if fits(row):
        return row
    size = len(row.prompt if isinstance(row.prompt, str) else row.prompt[_head(row.prompt)].get("content") or "")
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

    At least the last message (with the answer that it begins) and the system messages at the beginning stay.
    """
    prompt = row.prompt
    if isinstance(prompt, str):
        return row
    head, begins = _head(prompt), [i for i, m in enumerate(prompt) if m["role"] not in ("assistant", "tool")]
    last = max(len(prompt) - 1 if not begins else begins[-1], head)
    starts = [i for i in range(head, last) if i == head or i in begins]
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
    oldest = {**row.prompt[head], "content": (row.prompt[head].get("content") or "")[count:]}
    return replace(row, prompt=(*row.prompt[:head], oldest, *row.prompt[head + 1 :]))
