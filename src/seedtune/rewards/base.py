"""The reward type, the text of completions, the keyword arguments of reward functions, and their weighted sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seedtune.types import Example, begun

RewardFunction = Callable[..., Any]
"""TRL's signature: ``fn(prompts, completions, **columns) -> list[float | None]``, sync or async.

``prompts`` and ``completions`` are strings, or lists of chat messages for conversational prompts; ``columns``
are the data set's other columns, one list per column.  A function may accept fewer keywords.
"""


TEXTS = ("text", "input_text", "output_text")
"""Types of a message's parts that are its text."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A reward function, its name in the metrics and its weight in the weighted sum."""

    name: str
    function: RewardFunction
    weight: float = 1.0
    source: str | None = None
    """Import path of the function: ``seedtune.rewards.sources.adapters.load(source)`` returns it in any process.

    ``/path/file.py:name``, ``module.name``, or either with an adapter prefix, ``verl@module.name``.  None: the
    reward was passed as a function.
    """

    inline: bool = False
    """Whether the reward must run in the main process: it holds a model, or waits in its own threads (judges).

    None then means a request that failed, not a reward that does not apply.
    """

    chunk: int = 32
    """Completions per call if it is inline: enough for model batches, or for the requests that a judge sends at once.

    Calls follow one another, so the last requests of each leave others idle."""


def text_of(completion: str | Sequence[dict[str, Any]]) -> str:
    """Return the text of a completion, which is a string or a list of chat messages."""
    if isinstance(completion, str):
        return completion
    return "".join(map(content_of, completion))


def content_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message, whose content may be null (tool calls) or parts, some of which are thoughts."""
    content = message.get("content")
    if isinstance(content, list | tuple):
        return "".join(part["text"] for part in content if isinstance(part, Mapping) and part.get("type") in TEXTS)
    return "" if content is None else str(content)


def keywords_of(examples: Sequence[Example], texts: Sequence[str], names: Sequence[str]) -> dict[str, list[Any]]:
    """Return the keyword arguments of a reward function: the columns ``names``, ``prompts`` and ``completions``.

    An assistant message at a prompt's end, which the model continues, is the beginning of the completion, as in TRL.
    """
    columns = {name: [example.columns.get(name) for example in examples] for name in names}
    prompts, completions = list[Any](), list[Any]()
    for example, text in zip(examples, texts, strict=True):
        prompt, beginning = begun(example.prompt)
        if isinstance(prompt, str):
            prompts.append(prompt)
            completions.append(text)
        else:
            prompts.append([dict(message) for message in prompt])
            completions.append([{"role": "assistant", "content": beginning + text}])
    return {**columns, "prompts": prompts, "completions": completions}


def total(rewards: Sequence[Reward], values: Mapping[str, Sequence[float]]) -> list[float]:
    """Return Σ weight·value over the rewards with a finite value, per completion; NaN where there is none."""
    weighted = [[reward.weight * value for value in values[reward.name]] for reward in rewards]
    return [_sum(parts) for parts in zip(*weighted, strict=True)]


def _sum(parts: Sequence[float]) -> float:
    """Sum the finite parts; NaN if there are none or the sum overflows a float."""
    known = [part for part in parts if math.isfinite(part)]
    try:
        return math.fsum(known) if known else math.nan
    except OverflowError:
        return math.nan
