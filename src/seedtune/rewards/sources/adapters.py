"""Load reward functions by name, and adapt those of other libraries to TRL's signature, one call per completion."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from seedtune.errors import ConfigError, RewardError, suggest
from seedtune.rewards.answer_tags import CLOSE, OPEN
from seedtune.rewards.base import RewardFunction, text_of
from seedtune.rewards.execution.call import TRL, accepted
from seedtune.rewards.optional import optional
from seedtune.rewards.sources import user_code
from seedtune.rewards.sources.gym_score import evaluates, marks, scorer

Function = Callable[..., Any]
Row = Mapping[str, Any]

TARGETS = ("target", "answer", "ground_truth", "label", "solution")
"""Usual names of the target column; a pair function uses the one that the data have."""


def verl(function: Function, target: str | None) -> RewardFunction:
    """Adapt verl's signature: ``compute_score(data_source, solution_str, ground_truth, extra_info)``.

    The function returns a number, or a mapping with a ``score``.  It is called with the columns ``data_source``,
    ``extra_info`` and ``ground_truth`` (or ``target``, or ``ground_truth`` inside the column ``reward_model``, as in
    verl's data).  A function with fewer parameters gets only those.
    """

    def call(prompt: Any, text: str, row: Row) -> Any:
        given = {
            "data_source": row.get("data_source"),
            "solution_str": text,
            "ground_truth": _ground_truth(row, target),
            "extra_info": row.get("extra_info"),
        }
        return function(**accepted(function, given))

    return _each(call, function)


def reasoning_gym(function: Function | None, target: str | None) -> RewardFunction:
    """Adapt reasoning-gym's signature: ``score_answer(answer, entry)``; entry is the row plus prompt as ``question``.

    The answer is the text in the last ``<answer>…</answer>``, or else the whole completion.  Without a function,
    the generator named in the row's ``metadata["source_dataset"]`` scores.
    """

    def call(prompt: Any, text: str, row: Row) -> Any:
        entry = {"question": text_of(prompt if isinstance(prompt, str) else prompt[-1:]), **row}
        score = _scorer(_generator_of(row)) if function is None else function
        return score(answer_in(text), entry)

    return _each(call, function or reasoning_gym)


def pair(function: Function, target: str | None) -> RewardFunction:
    """Adapt ``fn(output, target)`` → number or bool; the target is the column so named, or one of `TARGETS`."""
    return _each(lambda prompt, text, row: function(text, _target(row, target)), function)


ADAPTERS: dict[str, Callable[[Function, str | None], RewardFunction]] = {
    "verl": verl,
    "reasoning_gym": reasoning_gym,
    "pair": pair,
}
"""Adapters by name (``trl`` needs none): (function, name of the target column) → function with TRL's signature."""

_ADAPTED = re.compile(rf"({'|'.join(ADAPTERS)})(?:=([^@]+))?@(.*)", re.DOTALL)


def load(source: str) -> RewardFunction:
    """Load the function named by a ``Reward.source``, with TRL's signature; works in any process.

    Raises ConfigError if the file, module or function does not exist, cannot be imported, or is not callable.
    """
    found = _ADAPTED.fullmatch(source)
    adapter, target, path = found.groups() if found else (None, None, source)
    if adapter == "reasoning_gym" and not path:
        return reasoning_gym(None, None)
    label = f"the reward {path!r}"
    function = user_code.load(path, label)
    if isinstance(function, type):
        raise ConfigError(f"{label} is a class, not a function. Name a function, or an instance with __call__.")
    return ADAPTERS[adapter](function, target) if adapter else function


def answer_in(text: str) -> str:
    """Return the last closed ``<answer>…</answer>`` of a completion, or its whole text, stripped."""
    start = text.rfind(OPEN, 0, max(text.rfind(CLOSE), 0))
    return (text if start < 0 else text[start + len(OPEN) : text.find(CLOSE, start)]).strip()


def rows_of(columns: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """Convert columns of the data to one mapping per completion."""
    return [{name: column[index] for name, column in columns.items() if name not in TRL} for index in range(count)]


def _each(call: Callable[[Any, str, Row], Any], function: Any) -> RewardFunction:
    """Turn a function of one completion into one of all; it returns an awaitable if any single result is awaitable."""

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> Any:
        # Rows may have different columns; a batch holds None where a row lacks a column.
        rows = [{k: v for k, v in row.items() if v is not None} for row in rows_of(columns, len(completions))]
        scores = [call(p, text_of(c), row) for p, c, row in zip(prompts, completions, rows, strict=True)]
        if any(inspect.isawaitable(score) for score in scores):
            return _gathered(scores)
        return [_score(score) for score in scores]

    reward.__name__ = getattr(function, "__name__", type(function).__name__)
    reward.__qualname__ = f"<adapted>.{reward.__name__}"
    return reward


async def _gathered(scores: Sequence[Awaitable[Any] | Any]) -> list[Any]:
    async def value_of(score: Any) -> Any:
        return _score(await score if inspect.isawaitable(score) else score)

    return list(await asyncio.gather(*(value_of(score) for score in scores)))


def _score(returned: Any) -> Any:
    """Return the number, or the ``score`` of a mapping with further details, as verl functions may return."""
    if not isinstance(returned, Mapping):
        return returned
    if "score" not in returned:
        raise RewardError(f"a reward function returned a mapping without a 'score' (it holds {sorted(returned)}).")
    return returned["score"]


def _ground_truth(row: Row, target: str | None) -> Any:
    if target is not None:
        return _target(row, target)
    if "ground_truth" in row:
        return row["ground_truth"]
    model = row.get("reward_model")
    if isinstance(model, Mapping) and "ground_truth" in model:
        return model["ground_truth"]
    raise RewardError(
        "the adapter verl needs a column 'ground_truth', or 'reward_model' with one in it; the data have "
        f"{sorted(row)}. Name the column: target: COLUMN in the reward's mapping."
    )


def _target(row: Row, target: str | None) -> Any:
    if target is not None and target not in row:
        raise RewardError(f"target={target!r} is not a column of the data.{suggest(target, row)} Known: {sorted(row)}.")
    known = [target] if target is not None else [name for name in TARGETS if name in row]
    if len(known) != 1:
        raise RewardError(
            f"the adapter pair takes the target from one of the columns {', '.join(TARGETS)}; the data have "
            f"{sorted(row)}. Name the column: target: COLUMN in the reward's mapping."
        )
    return row[known[0]]


def _generator_of(row: Row) -> str:
    metadata = row.get("metadata")
    name = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str):
        raise RewardError(
            "the adapter reasoning_gym without a path needs rows with metadata={'source_dataset': NAME, …}, as "
            f"reasoning-gym makes them; this one has {sorted(row)}. Give a path to a score_answer function instead."
        )
    return name


@lru_cache(maxsize=64)
def _scorer(name: str) -> Function:
    """Return the scorer of a reasoning-gym generator; ConfigError if it is unknown or evaluates model output."""
    known = optional("reasoning_gym", "the adapter reasoning_gym").factory.DATASETS
    if name not in known:
        raise ConfigError(f"metadata.source_dataset={name!r} is not a generator of this reasoning-gym.")
    culprit = evaluates(name, known[name][0])
    if culprit is not None:
        raise ConfigError(
            f"metadata.source_dataset={name!r} is refused: its scorer runs {culprit} on what the model wrote. Give a "
            "path to a score_answer function of your own."
        )
    return lambda answer, entry: marks(scorer(name), answer, entry, 0.0)
