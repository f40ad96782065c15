"""Calling reward functions, the boundary of user code: TRL's conventions in, a checked float each out."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from seedtune.errors import RewardError
from seedtune.tasks.base import Reward
from seedtune.types import Example


def score(rewards: Sequence[Reward], examples: Sequence[Example], texts: Sequence[str]) -> dict[str, list[float]]:
    """Each reward's value for every (example, completion text), NaN where it does not apply.

    Raises RewardError naming the function when it raises or returns anything but one number or None each.
    """
    prompts = [_prompt(example) for example in examples]
    completions = [_completion(example, text) for example, text in zip(examples, texts, strict=True)]
    columns = _columns(examples)
    return {reward.name: _call(reward, prompts, completions, columns) for reward in rewards}


def total(rewards: Sequence[Reward], values: Mapping[str, Sequence[float]]) -> list[float]:
    """Σ weight·value over the rewards that apply; NaN where none does."""
    weighted = [[reward.weight * value for value in values[reward.name]] for reward in rewards]
    return [_sum(parts) for parts in zip(*weighted, strict=True)]


def _sum(parts: Sequence[float]) -> float:
    """NaN, too, where finite rewards add up to more than a float holds."""
    known = [part for part in parts if math.isfinite(part)]
    try:
        return math.fsum(known) if known else math.nan
    except OverflowError:
        return math.nan


def _call(reward: Reward, prompts: list[Any], completions: list[Any], columns: dict[str, list[Any]]) -> list[float]:
    keywords = {**columns, "prompts": prompts, "completions": completions}
    try:
        returned = reward.function(**_accepted(reward, keywords))
        if inspect.isawaitable(returned):
            returned = _wait_for(returned)
    except Exception as error:  # the named boundary: user code may raise anything
        raise RewardError(
            f"the reward function {reward.name!r} raised {type(error).__name__}: {error}. "
            "Fix it, or return None for completions it cannot score; the run can be resumed."
        ) from error
    return _checked(reward, returned, len(completions))


def _wait_for(awaitable: Awaitable[Any]) -> Any:
    """The result of an async reward; in a thread of its own where a loop runs already (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_await(awaitable))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _await(awaitable)).result()


async def _await(value: Awaitable[Any]) -> Any:
    return await value


def _accepted(reward: Reward, keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords the function takes; all of them if it has ``**kwargs``."""
    parameters = inspect.signature(reward.function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return keywords
    names = {parameter.name for parameter in parameters}
    return {key: value for key, value in keywords.items() if key in names}


def _checked(reward: Reward, returned: Any, count: int) -> list[float]:
    try:
        values = list(returned)
    except TypeError:
        raise RewardError(
            f"the reward function {reward.name!r} returned {type(returned).__name__}, not a list of {count} numbers."
        ) from None
    if len(values) != count:
        raise RewardError(
            f"the reward function {reward.name!r} returned {len(values)} values for {count} completions. "
            "Return one number or None for each."
        )
    return [_number(reward, value) for value in values]


def _number(reward: Reward, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str | bytes):
        raise RewardError(
            f"the reward function {reward.name!r} returned {value!r}, which is text. Return a number or None."
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise RewardError(
            f"the reward function {reward.name!r} returned {value!r} ({type(value).__name__}). Return a number or None."
        ) from None
    return number if math.isfinite(number) else math.nan


def _prompt(example: Example) -> Any:
    return example.prompt if isinstance(example.prompt, str) else [dict(message) for message in example.prompt]


def _completion(example: Example, text: str) -> Any:
    return text if isinstance(example.prompt, str) else [{"role": "assistant", "content": text}]


def _columns(examples: Sequence[Example]) -> dict[str, list[Any]]:
    names = sorted({name for example in examples for name in example.columns})
    return {name: [example.columns.get(name) for example in examples] for name in names}
