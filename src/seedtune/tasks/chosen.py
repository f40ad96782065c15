"""Which task a trainer trains: a built-in one, or the caller's own data and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from seedtune.config import Config
from seedtune.errors import ConfigError, DataError
from seedtune.rewards import building
from seedtune.tasks import create, datasets
from seedtune.tasks.base import Task
from seedtune.tasks.data import Rows, examples
from seedtune.tasks.splitting import hold_out
from seedtune.types import Example
from seedtune.userdata import OBJECTS, DatasetSettings

Data = Rows | str
"""Rows, or text that names them."""

_HOW = "resume it from Python with the same Trainer."


@dataclass(frozen=True, slots=True)
class Given:
    """What a program gives besides a configuration; None: the configuration's own."""

    rewards: building.Given | Sequence[building.Given] | None = None
    weights: Sequence[float] | None = None
    train: Data | None = None
    test: Data | None = None


def chosen(config: Config, given: Given) -> tuple[Config, Task]:
    """The built-in task, or own data and rewards; with the configuration that records which.

    DataError if there is nothing to train on, ConfigError if data or rewards are missing or given twice.
    """
    listed = [] if given.rewards is None else building.listed(given.rewards)
    config = _recorded(config, given, listed)
    if config.task != "custom":
        _check_unused(config)
        task = create(config.task, config.task_args)
    else:
        _check_whole(config, given, listed)
        train, test = _data(config, given)
        task = Task("custom", train, test, building.build(config, listed))
    _check_task(config, task)
    return config, task


def _recorded(config: Config, given: Given, listed: Sequence[building.Given]) -> Config:
    """The configuration with what was given in it, files by absolute paths."""
    changes: dict[str, Any] = {}
    for name, data in (("train_dataset", given.train), ("eval_dataset", given.test)):
        if data is not None:
            changes[name] = {"path": data if isinstance(data, str) else OBJECTS}
    if listed:
        changes["reward_funcs"] = building.settings_of(listed)
    if given.weights is not None:
        changes["reward_weights"] = tuple(given.weights)
    if given.train is None and not listed and changes and config.train_dataset is None:
        raise ConfigError("reward_weights and eval_dataset need reward_funcs and train_dataset.")
    if not changes:
        return _settled(config)
    told = _settled(config.replace(**changes, task="custom"))
    _check_not_twice(_settled(config), told, list(changes))
    return told


def _check_unused(config: Config) -> None:
    for name in ("reward_weights", "eval_dataset"):
        if getattr(config, name) is not None:
            raise ConfigError(
                f"{name} is for own data and rewards: give train_dataset and reward_funcs, or leave it out."
            )


def _check_not_twice(config: Config, told: Config, changed: Sequence[str]) -> None:
    """ConfigError where an argument would override a setting; to tell a resumed run the same again is no mistake."""
    for name in changed:
        if getattr(config, name) and getattr(told, name) != getattr(config, name):
            raise ConfigError(f"{name} is given twice: as an argument and in the configuration. Leave one out.")


def _settled(config: Config) -> Config:
    """Files by their absolute paths: the run can be resumed from any working directory."""
    data = {name: getattr(config, name) for name in ("train_dataset", "eval_dataset")}
    found = {n: datasets.settled(d) for n, d in data.items() if d is not None and d.path != OBJECTS}
    rewards = tuple(building.settled(reward) for reward in config.reward_funcs)
    return config.model_copy(update={**found, "reward_funcs": rewards})


def _check_whole(config: Config, given: Given, listed: Sequence[building.Given]) -> None:
    """ConfigError if data or rewards are missing, or were objects that only the program had."""
    data = ((config.train_dataset, given.train), (config.eval_dataset, given.test))
    lost = [name for name, (told, had) in zip(("training", "held-out"), data, strict=True) if _is_lost(told, had)]
    if lost:
        raise ConfigError(f"this run's {' and '.join(lost)} data were Python objects: {_HOW}")
    if not listed and any(reward.path == OBJECTS for reward in config.reward_funcs):
        raise ConfigError(f"this run's reward functions were Python objects: {_HOW}")
    if config.train_dataset is None and not config.reward_funcs:
        raise ConfigError(f"this run had its own data and rewards: {_HOW}")
    if config.train_dataset is None or not config.reward_funcs:
        raise ConfigError("give both reward_funcs and train_dataset, or neither and a built-in task.")
    if config.task_args:
        raise ConfigError(f"task_args={config.task_args} are for a built-in task, not for own data and rewards.")


def _is_lost(told: DatasetSettings | None, had: Data | None) -> bool:
    return told is not None and told.path == OBJECTS and had is None


def _data(config: Config, given: Given) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    train = _examples(config, (config.train_dataset, given.train), "train")
    if config.eval_dataset is None:
        return hold_out(train, config.eval_share)
    return train, _examples(config, (config.eval_dataset, given.test), "eval")


def _examples(config: Config, data: tuple[DatasetSettings | None, Data | None], split: str) -> tuple[Example, ...]:
    settings, given = data
    column = config.prompt_column
    if given is not None and not isinstance(given, str):
        return examples(given, split, prompt_column=column)
    assert settings is not None
    rows = datasets.read(settings, {"train": "train", "eval": "test"}[split])
    return examples(rows, split, prompt_column=settings.prompt_column or column)


def _check_task(config: Config, task: Task) -> None:
    if not task.train:
        raise DataError(f"the training data of task {task.name!r} is empty. Give at least one row with a 'prompt'.")
    if config.system_prompt is not None and any(isinstance(e.prompt, str) for e in (*task.train, *task.test)):
        raise ConfigError(
            f"system_prompt={config.system_prompt!r} needs chat prompts, but task {task.name!r} has "
            "plain text. Make its prompts lists of messages, or leave system_prompt out."
        )
