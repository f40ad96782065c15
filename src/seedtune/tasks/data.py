"""Tasks from rows: any iterable of mappings with a ``prompt``, such as a Hugging Face data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from seedtune.errors import ConfigError, DataError
from seedtune.tasks.base import Reward, RewardFunction
from seedtune.types import Example

Rows = Iterable[Mapping[str, Any]]
"""Anything that gives mappings with a ``prompt``."""


def examples(rows: Rows | None, split: str) -> tuple[Example, ...]:
    """Rows as examples, numbered in order; DataError names the row that is not one."""
    if rows is None:
        return ()
    return tuple(_example(index, row, split) for index, row in enumerate(rows))


def _example(index: int, row: Any, split: str) -> Example:
    if not isinstance(row, Mapping) or "prompt" not in row:
        held = sorted(row) if isinstance(row, Mapping) else type(row).__name__
        raise DataError(f"row {index} of the {split} data has no 'prompt' (it holds {held}). Name the column 'prompt'.")
    prompt = row["prompt"]
    columns = {key: value for key, value in row.items() if key != "prompt"}
    if isinstance(prompt, str):
        return Example(index, prompt, columns)
    if isinstance(prompt, Sequence) and prompt and all(_is_message(message) for message in prompt):
        return Example(index, tuple(dict(message) for message in prompt), columns)
    raise DataError(
        f"row {index} of the {split} data: the prompt {prompt!r} is neither text nor a list of messages "
        "like {'role': 'user', 'content': '…'}."
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, Mapping) and {"role", "content"} <= set(message)


def rewards(
    functions: RewardFunction | Sequence[RewardFunction], weights: Sequence[float] | None
) -> tuple[Reward, ...]:
    """Reward functions with their names and weights (1 each if none are given)."""
    listed = [functions] if callable(functions) else list(functions)
    if not listed:
        raise ConfigError("reward_funcs is empty. Give at least one function(prompts, completions, **columns).")
    scale = [1.0] * len(listed) if weights is None else list(weights)
    if len(scale) != len(listed):
        raise ConfigError(f"{len(listed)} reward functions but {len(scale)} reward_weights. Give one weight each.")
    names = _names(listed)
    return tuple(Reward(n, fn, float(w)) for n, fn, w in zip(names, listed, scale, strict=True))


def _names(functions: Sequence[Callable[..., Any]]) -> list[str]:
    """The functions' own names; the second of a name gets ``_2``, because metrics and values go by name."""
    names: list[str] = []
    for function in functions:
        own = getattr(function, "__name__", type(function).__name__)
        candidates = (own, *(f"{own}_{number}" for number in range(2, len(functions) + 2)))
        names.append(next(name for name in candidates if name not in names))
    return names


def packaged_rows(file: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file that ships in this package."""
    text = resources.files("seedtune.tasks").joinpath("data", file).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]
