"""Create the task of a run: a built-in one, or one from the user's own data and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OBJECTS, DatasetSettings
from seedtune.config.sections import ConversationSettings
from seedtune.errors import ConfigError, DataError
from seedtune.rewards.base import Reward
from seedtune.rewards.sources import build, user_code
from seedtune.tasks import create, environments
from seedtune.tasks.base import Task
from seedtune.tasks.data import datasets
from seedtune.tasks.data.rows import Rows, examples
from seedtune.tasks.data.split import hold_out
from seedtune.tasks.environments.base import EnvironmentFactory, environment_reward
from seedtune.tasks.reference_answers import reference_answers, scored_by_the_engine
from seedtune.types import Example

Data = Rows | str
"""Rows, or a string that names a file or data set."""

_HOW = "resume it from Python with the same Trainer."


@dataclass(frozen=True, slots=True)
class TaskInputs:
    """Python objects passed in addition to a configuration; None: use the configuration's setting."""

    rewards: build.RewardSpec | Sequence[build.RewardSpec] | None = None
    weights: Sequence[float] | None = None
    train: Data | None = None
    test: Data | None = None
    environment: EnvironmentFactory | None = None


def chosen(config: Config, given: TaskInputs) -> tuple[Config, Task]:
    """Return the task of a run and the configuration that records it.

    Raises DataError if there are no training examples, and ConfigError if data or rewards are missing or given twice.
    """
    listed = [] if given.rewards is None else build.listed(given.rewards)
    config = _recorded(config, given, listed)
    environment = _environment(config, given)
    own = _without_functions(config, environment)
    if config.task != "custom":
        _check_unused(config)
        task = create(config.task, config.task_args)
        if own:
            full = 1.0 if config.objective == "choice_accuracy" else None
            task = replace(task, rewards=own, full_marks=full, gold=None, answer=None)
        task = replace(task, environment=environment or task.environment)
    else:
        _check_whole(config, given, listed, needed=not own)
        train, test = _data(config, given)
        found = build.build(config, listed) if config.reward_funcs else own
        task = Task("custom", train, test, found, environment=environment)
    _check_task(config, task)
    return config, task


def _environment(config: Config, given: TaskInputs) -> EnvironmentFactory | None:
    """Return the factory of the environment, if the program or the configuration names one."""
    if given.environment is not None or config.environment is None:
        return given.environment
    if config.environment == OBJECTS:
        raise ConfigError(f"this run's environment was a Python object: {_HOW}")
    return environments.find(config.environment)


def _recorded(config: Config, given: TaskInputs, listed: Sequence[build.RewardSpec]) -> Config:
    """Return the configuration with the given inputs recorded and file paths made absolute."""
    changes: dict[str, Any] = {}
    for name, data in (("train_dataset", given.train), ("eval_dataset", given.test)):
        if data is not None:
            changes[name] = {"path": data if isinstance(data, str) else OBJECTS}
    if listed:
        changes["reward_funcs"] = build.settings_of(listed)
    if given.weights is not None:
        changes["reward_weights"] = tuple(given.weights)
    if given.train is None and not listed and changes and config.train_dataset is None:
        raise ConfigError("reward_weights and eval_dataset need reward_funcs and train_dataset.")
    if given.environment is not None:
        if config.environment not in (None, OBJECTS):
            raise ConfigError("the environment is given twice: as an argument and in the configuration. Leave one out.")
        config = config.replace(environment=OBJECTS)
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
    """Raise ConfigError if an argument would change a setting; passing equal values again on resume is allowed."""
    for name in changed:
        if getattr(config, name) and getattr(told, name) != getattr(config, name):
            raise ConfigError(f"{name} is given twice: as an argument and in the configuration. Leave one out.")


def _settled(config: Config) -> Config:
    """Make all file paths absolute, so that the run can be resumed from any working directory."""
    data = {name: getattr(config, name) for name in ("train_dataset", "eval_dataset")}
    found = {n: datasets.settled(d) for n, d in data.items() if d is not None and d.path != OBJECTS}
    rewards = tuple(build.settled(reward) for reward in config.reward_funcs)
    environment = config.environment and user_code.settled(config.environment)
    named = {"task": user_code.settled(config.task), "environment": environment}
    others = tuple(user_code.settled(name) for name in config.eval_tasks)
    return config.model_copy(update={**found, **named, "eval_tasks": others, "reward_funcs": rewards})


def _check_whole(config: Config, given: TaskInputs, listed: Sequence[build.RewardSpec], *, needed: bool) -> None:
    """Raise ConfigError if data or rewards are missing, or were Python objects of an earlier program."""
    data = ((config.train_dataset, given.train), (config.eval_dataset, given.test))
    lost = [name for name, (told, had) in zip(("training", "held-out"), data, strict=True) if _is_lost(told, had)]
    if lost:
        raise ConfigError(f"this run's {' and '.join(lost)} data were Python objects: {_HOW}")
    if not listed and any(reward.path == OBJECTS for reward in config.reward_funcs):
        raise ConfigError(f"this run's reward functions were Python objects: {_HOW}")
    if config.train_dataset is None and not config.reward_funcs:
        raise ConfigError(f"this run had its own data and rewards: {_HOW}")
    if config.train_dataset is None or (needed and not config.reward_funcs):
        raise ConfigError(
            "give both reward_funcs and train_dataset (--reward and --train-dataset), or neither and a built-in task; "
            "an environment with a reward, or objective=logprob, needs no reward_funcs."
        )
    if config.task_args:
        raise ConfigError(f"task_args={config.task_args} are for a built-in task, not for own data and rewards.")


def _is_lost(told: DatasetSettings | None, had: Data | None) -> bool:
    return told is not None and told.path == OBJECTS and had is None


def _data(config: Config, given: TaskInputs) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    train = _examples(config, (config.train_dataset, given.train), "train")
    if config.eval_dataset is None:
        return hold_out(train, config.eval_size)
    return train, _examples(config, (config.eval_dataset, given.test), "eval")


def _examples(config: Config, data: tuple[DatasetSettings | None, Data | None], split: str) -> tuple[Example, ...]:
    settings, given = data
    column = config.prompt_column
    if given is not None and not isinstance(given, str):
        return examples(given, split, prompt_column=column)
    assert settings is not None
    rows = datasets.read(settings, {"train": "train", "eval": "test"}[split])
    return examples(rows, split, prompt_column=settings.prompt_column or column)


def _without_functions(config: Config, environment: EnvironmentFactory | None) -> tuple[Reward, ...]:
    """Return the rewards of likelihood objectives and environments, which need no reward functions."""
    if config.uses_likelihood:
        return (Reward(config.objective, scored_by_the_engine),)
    return () if environment is None else (Reward("environment_reward", environment_reward),)


def _check_scored(config: Config, task: Task) -> None:
    """Check the reference answers of likelihood objectives, and settings that conflict with an environment."""
    if config.uses_likelihood:
        if any(reward.function is not scored_by_the_engine for reward in task.rewards) or task.environment is not None:
            raise ConfigError(
                f"objective={config.objective} is a reward by itself. Leave reward_funcs and environments out, or use "
                "objective=mean."
            )
        for example in (*task.train, *task.test):
            reference_answers(config, example)
    if task.environment is not None and config.kl_steps:
        raise ConfigError(f"kl_steps={config.kl_steps} measures single answers, not conversations. Use kl_steps=0.")
    if task.environment is None and config.conversation != ConversationSettings():
        raise ConfigError(f"conversation has no effect on task {task.name!r}, which has no environment. Leave it out.")


def _check_task(config: Config, task: Task) -> None:
    _check_scored(config, task)
    if not task.train:
        raise DataError(f"the training data of task {task.name!r} is empty. Give at least one row with a 'prompt'.")
    if config.system_prompt is not None and any(isinstance(e.prompt, str) for e in (*task.train, *task.test)):
        raise ConfigError(
            f"system_prompt={config.system_prompt!r} needs chat prompts, but task {task.name!r} has "
            "plain text. Make its prompts lists of messages, or leave system_prompt out."
        )
