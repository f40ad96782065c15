"""Create the task of a run: a built-in one, or one from the user's own data and rewards."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OBJECTS, OWN_TASK, DatasetSettings
from seedtune.errors import ConfigError, several, suggest
from seedtune.rewards.base import Reward
from seedtune.rewards.sources import build, user_code
from seedtune.tasks import create, recorded_args
from seedtune.tasks.base import Task
from seedtune.tasks.builtin.number_guessing import NumberGuessing
from seedtune.tasks.data import datasets
from seedtune.tasks.data.rows import Examples, Rows, examples, hold_out
from seedtune.tasks.environments import EnvironmentFactory, Factory, ToolsAlone, check_factories, named, own_rewards
from seedtune.tasks.reference_answers import scored_by_the_engine
from seedtune.types import Example

Data = Rows | str | os.PathLike[str]
"""Rows, or a string or path that names a file or data set."""

ENVIRONMENTS: dict[str, Factory] = {"number_guessing": NumberGuessing}
"""Built-in environments by name."""


@dataclass(frozen=True, slots=True)
class TaskInputs:
    """Python objects passed in addition to a configuration; None: use the configuration's setting."""

    rewards: build.RewardSpec | Sequence[build.RewardSpec] | None = None
    weights: Sequence[float] | None = None
    train: Data | None = None
    test: Data | Mapping[str, Data] | None = None
    environment: EnvironmentFactory | None = None
    tools: Sequence[Callable[..., Any]] | None = None
    """As TRL's ``tools``: functions that the model may call in a conversation."""
    reward_tokenizers: Any = None
    """As TRL's ``reward_processing_classes``: a tokenizer, or one or None per reward."""

    @property
    def listed_rewards(self) -> list[build.RewardSpec]:
        """The rewards as a list, empty if none were passed."""
        return [] if self.rewards is None else build.listed(self.rewards)

    @property
    def test_sets(self) -> Mapping[str, Data]:
        """The held-out sets by name; a single one has the name ``""``."""
        return self.test if isinstance(self.test, Mapping) else {} if self.test is None else {"": self.test}


def recorded(config: Config, inputs: TaskInputs) -> Config:
    """Return the configuration with the inputs recorded; no file is read.

    Raises ConfigError for an input that would change a setting; passing equal values again on resume is allowed.
    """
    changes: dict[str, Any] = {}
    if inputs.train is not None:
        changes["train_dataset"] = _place(inputs.train)
    if inputs.test is not None:
        sets = {name: _place(data) for name, data in inputs.test_sets.items()}
        changes["eval_dataset"] = sets.get("", sets)
    if inputs.rewards is not None:
        changes["reward_funcs"] = build.settings_of(inputs.listed_rewards)
    if inputs.weights is not None:
        changes["reward_weights"] = several("reward_weights", inputs.weights)
    if changes and not {"train_dataset", "reward_funcs"} & changes.keys() and config.train_dataset is None:
        raise ConfigError("reward_weights and eval_dataset need reward_funcs and train_dataset.")
    if changes:
        changes["task"] = OWN_TASK
    if inputs.environment is not None or inputs.tools:
        changes["environment"] = OBJECTS
    after = config.replace(**changes)
    for name in changes.keys() - {"task"}:
        if getattr(config, name) and getattr(after, name) != getattr(config, name):
            raise ConfigError(f"{name} is given twice: as an argument and in the configuration. Leave one out.")
    return after.replace(task_args=recorded_args(after.task, after.task_args))


def built(config: Config, inputs: TaskInputs) -> Task:
    """Build the task of a recorded configuration.

    Raises DataError or ConfigError if data or rewards are missing, unreadable, or were Python objects of another
    program.
    """
    _check_objects(config, inputs)
    tokenizers = build.tokenizers_of(config, inputs.reward_tokenizers)
    tools = named(several("tools", inputs.tools or ()))
    environment, alone = _environment(config, inputs), ToolsAlone if tools else None
    implied = _implied_rewards(config, environment)
    if config.task != OWN_TASK:
        task = create(config.task, config.task_args)
        if implied:
            full = 1.0 if config.objective == "choice_accuracy" else None
            task = replace(task, rewards=implied, full_marks=full, gold=None, answer=None)
        return replace(task, environment=environment or task.environment or alone, tools=tools)
    if config.train_dataset is None and not (implied or config.reward_funcs):
        raise ConfigError(
            "nothing says what to train on. Give your own data and reward (--train-dataset FILE and --reward "
            "FILE.py:FUNCTION; in Python and in settings files train_dataset and reward_funcs), or a built-in task "
            "(--set task=NAME; 'seedtune tasks' lists the names)."
        )
    if config.train_dataset is None or not (implied or config.reward_funcs):
        raise ConfigError(
            "give both reward_funcs and train_dataset (--reward and --train-dataset), or neither and a built-in task; "
            "an environment with a reward, or objective=logprob, needs no reward_funcs."
        )
    train, sets = _examples(config, config.train_dataset, inputs.train, split="train"), dict[str, range]()
    if config.eval_dataset is None:
        train, test = hold_out(train, config.eval_size)
    else:
        test, sets = _held_out(config, inputs)
    passed = build.build(config, inputs.listed_rewards, tokenizers) if config.reward_funcs else ()
    rewards = build.distinct((*passed, *implied))
    return Task(OWN_TASK, train, test, rewards, environment=environment or alone, tools=tools, test_sets=sets)


def _environment(config: Config, inputs: TaskInputs) -> EnvironmentFactory | None:
    """Return the environments that the program passes or the settings name; ConfigError for what is none."""
    found, setting = inputs.environment, config.environment
    if isinstance(setting, dict):
        found = {name: environment_of(place, f"environment.{name}") for name, place in setting.items()}
    elif found is None and setting is not None and setting != OBJECTS:
        found = environment_of(setting)
    check_factories(found)
    if isinstance(found, Mapping) and config.train_dataset is None:
        raise ConfigError(
            f"there are several environments ({', '.join(found)}), but no train_dataset, whose column 'environment' "
            "names that of each row. Give one, or a single environment."
        )
    return found


def environment_of(name: str, setting: str = "environment") -> Factory:
    """Return a built-in environment, or the class in ``file.py:Class`` or ``module.Class``; may raise ConfigError."""
    if name in ENVIRONMENTS:
        return ENVIRONMENTS[name]
    if not {":", "."} & set(name):
        raise ConfigError(
            f"{setting}={name!r} is not one of ours.{suggest(name, ENVIRONMENTS)} Known: {', '.join(ENVIRONMENTS)}. "
            "Name your own as file.py:Class or module.Class."
        )
    return user_code.load(name, f"{setting}={name!r}")


def _check_objects(config: Config, inputs: TaskInputs) -> None:
    """Raise ConfigError if the configuration records Python objects that were not passed again."""
    lost = []
    if config.train_dataset is not None and config.train_dataset.path == OBJECTS and inputs.train is None:
        lost.append("training data")
    if any(had.path == OBJECTS and name not in inputs.test_sets for name, had in config.eval_datasets.items()):
        lost.append("held-out data")
    if inputs.rewards is None and any(reward.path == OBJECTS for reward in config.reward_funcs):
        lost.append("reward functions")
    if config.environment == OBJECTS and inputs.environment is None and not inputs.tools:
        lost.append("environment")
    if lost:
        kind = "was a Python object" if lost == ["environment"] else "were Python objects"
        raise ConfigError(f"this run's {' and '.join(lost)} {kind}: resume it from Python with the same ESTrainer.")


def _examples(config: Config, settings: DatasetSettings, given: Data | None, *, split: str) -> Examples:
    """Return the rows passed by the program, or those that the settings name."""
    rows: Any = datasets.read(settings, split) if given is None or _is_name(given) else given
    return examples(rows, "eval" if split == "test" else split, prompt_column=config.prompt_column)


def _held_out(config: Config, inputs: TaskInputs) -> HeldOut:
    """Return the rows of all held-out sets, numbered one set after the other, and the numbers of each named set."""
    rows, numbers = list[Example](), dict[str, range]()
    for name, settings in config.eval_datasets.items():
        found = _examples(config, settings, inputs.test_sets.get(name), split="test")
        numbers[name] = range(len(rows), len(rows) + len(found))
        rows += [replace(row, id=number) for number, row in zip(numbers[name], found, strict=True)]
    return HeldOut(tuple(rows), {name: ids for name, ids in numbers.items() if name})


class HeldOut(NamedTuple):
    """Held-out examples, and the numbers of those in each named set."""

    rows: Examples
    sets: dict[str, range]


def _place(data: Data) -> dict[str, Any]:
    """Return what a configuration records of data that a program passes: their name, or that they are objects."""
    return {"path": data if _is_name(data) else OBJECTS}


def _is_name(data: Data) -> bool:
    return isinstance(data, str | os.PathLike)


def _implied_rewards(config: Config, environment: EnvironmentFactory | None) -> tuple[Reward, ...]:
    """Return the rewards that likelihood objectives and environments bring along."""
    if config.uses_likelihood:
        return () if config.reward_funcs else (Reward(config.objective, scored_by_the_engine),)
    own = {} if environment is None else own_rewards(environment, beside=bool(config.reward_funcs))
    return tuple(Reward(name, function) for name, function in own.items())
