"""Build a task's rewards from the user's specification: functions, strings or mappings."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from typing import Any

from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OBJECTS, RewardSettings
from seedtune.errors import ConfigError, several
from seedtune.rewards.base import Reward, RewardFunction
from seedtune.rewards.sources.adapters import load

RewardSpec = RewardFunction | str | Mapping[str, Any] | RewardSettings
"""One reward as specified by a user."""


def listed(given: RewardSpec | Sequence[RewardSpec]) -> list[RewardSpec]:
    """Return one reward or several as a list; raise ConfigError if it is empty."""
    alone = callable(given) or isinstance(given, str | os.PathLike | Mapping | RewardSettings)
    found: list[Any] = [given] if alone else several("reward_funcs", given)
    if not found:
        raise ConfigError("reward_funcs is empty. Give at least one function(prompts, completions, **columns).")
    return found


def settings_of(given: Sequence[RewardSpec]) -> list[Any]:
    """Return the settings that a configuration records for each reward; a function is marked as a Python object."""
    return [{"path": OBJECTS, "name": name_of(spec)} if callable(spec) else spec for spec in given]


def build(config: Config, given: Sequence[RewardSpec], tokenizers: Sequence[Any] = ()) -> tuple[Reward, ...]:
    """Build the rewards of ``config.reward_funcs``, using functions in ``given`` directly.

    A reward model's tokenizer, if one of ``tokenizers`` is given for it, must be its own, or ConfigError is raised.

    Names are unique, because metrics and values are keyed by them: a second reward of the same name gets ``_2``.
    """
    functions = [spec if callable(spec) else None for spec in given] or [None] * len(config.reward_funcs)
    names = _names([settings.label for settings in config.reward_funcs])
    columns = (names, functions, config.reward_funcs, tokenizers or [None] * len(names))
    rewards = (
        Reward(name, function) if function is not None else _build(name, settings, tokenizer)
        for name, function, settings, tokenizer in zip(*columns, strict=True)
    )
    return tuple(replace(reward, weight=weight) for reward, weight in zip(rewards, config.weights, strict=True))


def tokenizers_of(config: Config, given: Any) -> list[Any]:
    """Return TRL's ``reward_processing_classes`` (None, one tokenizer, or a list) as one tokenizer or None per reward.

    Raises ConfigError if they are not as many as the rewards.
    """
    found = list(given) if isinstance(given, list | tuple) else [given]
    rewards = len(config.reward_funcs)
    if given is not None and len(found) != rewards:
        raise ConfigError(
            f"{len(found)} reward_processing_classes for {rewards} reward_funcs. Give one each: None for a function, "
            "and None for a reward model to use its own tokenizer."
        )
    return [None] * rewards if given is None else found


def name_of(function: Any) -> str:
    """Return a function's ``__name__``, or the name of its type."""
    return str(getattr(function, "__name__", type(function).__name__))


def _build(name: str, settings: RewardSettings, tokenizer: Any) -> Reward:
    if settings.judge is not None:
        from seedtune.rewards.sources.judge import Judge

        return Reward(name, Judge(settings.judge), inline=True, chunk=4 * settings.judge.concurrency)
    if settings.classifier is not None:
        from seedtune.rewards.sources.classifier import Classifier

        classifier = Classifier(settings.classifier)
        if tokenizer is not None:
            classifier.check_tokenizer(tokenizer)
        return Reward(name, classifier, inline=True)
    source = settings.path or ""
    if settings.adapter != "trl":
        target = f"={settings.target}" if settings.target is not None else ""
        source = f"{settings.adapter}{target}@{source}"
    return Reward(name, load(source), source=source)


def distinct(rewards: Sequence[Reward]) -> tuple[Reward, ...]:
    """Return the rewards with unique names."""
    names = _names([reward.name for reward in rewards])
    return tuple(replace(reward, name=name) for reward, name in zip(rewards, names, strict=True))


def _names(own: Sequence[str]) -> list[str]:
    names: list[str] = []
    for name in own:
        candidates = chain([name], (f"{name}_{number}" for number in count(2)))
        names.append(next(candidate for candidate in candidates if candidate not in names))
    return names
