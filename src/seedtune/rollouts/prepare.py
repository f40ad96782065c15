"""Prepare a run: record the given inputs in the configuration, create the task and fit its prompts to the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedtune import engines
from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.rewards.sources.build import RewardSpec
from seedtune.rollouts import asynchronous
from seedtune.rollouts.prompts import prompt_of
from seedtune.tasks.base import Task
from seedtune.tasks.data.prompt_length import Limit, fit
from seedtune.tasks.from_config import Data, TaskInputs, chosen
from seedtune.types import Example

__all__ = ["Data", "RewardSpec", "TaskInputs", "take", "task_of"]


def task_of(config: Config) -> Task:
    """Create the task of a configuration, without fitting its prompts to the model."""
    return chosen(config, TaskInputs())[1]


def take(config: Config, given: TaskInputs, *, model: Any = None, processing_class: Any = None) -> tuple[Config, Task]:
    """Return the resolved configuration and its task, with prompts that fit the model's context.

    ``model`` is a folder or Hugging Face id that replaces the configuration's; ``processing_class``, as in TRL, is a
    tokenizer, which must be the model's own.  Raises a SeedtuneError that says what is wrong.
    """
    if model is not None:
        config = config.replace(model=_name_of(model))
    config, task = chosen(config, given)
    asynchronous.check(config, task)
    if processing_class is not None:
        engines.check_tokenizer(config, processing_class)
    return config, _fitted(config, task)


def _name_of(model: Any) -> str:
    if not isinstance(model, str):
        raise ConfigError(
            f"model is a {type(model).__name__}, but its weights are read from where they lie. Give its folder or "
            "Hugging Face id as text: model.name_or_path, or where you saved it with model.save_pretrained(folder)."
        )
    return model


def _fitted(config: Config, task: Task) -> Task:
    """Apply the truncation policy to prompts that are too long for the model or the configuration."""
    tokenizer = engines.tokenizer(config)
    limit = _limit(config, tokenizer.context_length)
    if limit is None:
        return task

    def measure(rows: Sequence[Example]) -> list[int]:
        return tokenizer.lengths([prompt_of(config, row) for row in rows])

    return fit(task, limit, measure)


def _limit(config: Config, context: int | None) -> Limit | None:
    """Return the token limit of a prompt; None: unlimited."""
    own = config.max_prompt_length
    room, why = (None, "") if context is None else _room(config, context)
    if own is not None and (room is None or own <= room):
        return Limit(own, f"max_prompt_length={own}", config.prompt_truncation)
    return None if room is None else Limit(room, why, config.prompt_truncation)


def _room(config: Config, context: int) -> tuple[int, str]:
    """Return the tokens that the model's context leaves for a prompt, and a description of that limit."""
    if config.uses_likelihood:  # the engine checks the length of reference answers
        return context, f"the model's context of {context}"
    new = config.max_completion_length
    if new >= context:
        raise ConfigError(
            f"max_completion_length={new} leaves no room for a prompt in the model's context of {context} tokens. "
            "Lower it."
        )
    return context - new, f"the model's context of {context} without max_completion_length={new}"
