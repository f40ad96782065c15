"""Load data and rewards as a run would, and score two answers with the rewards, before settings are written."""

from __future__ import annotations

import importlib.util
import inspect
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from seedtune import activities
from seedtune.cli.console import number
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import as_dataset
from seedtune.config.paths import is_folder, model_path
from seedtune.engines.transformers.builtin_models import BUILTIN
from seedtune.errors import ConfigError, DataError, MissingExtraError, ModelError, RewardError, suggest
from seedtune.rewards.base import Reward, keywords_of
from seedtune.rewards.execution.call import TRL, attempt
from seedtune.rewards.execution.thread import TimedThread
from seedtune.tasks.base import Task
from seedtune.tasks.data import datasets
from seedtune.tasks.from_config import TaskInputs, built, recorded
from seedtune.types import Example

PROMPTS = ("prompt", "question", "instruction", "problem", "query", "messages", "input")
"""Usual names of the column of prompts."""

TARGETS = ("answer", "gold", "target", "solution", "label", "ground_truth", "output")
"""Usual names of the column with the right answer."""

FUNCTION = "reward"
"""Name of the reward that is written to be filled in."""

SAMPLE = "An answer."
"""The completion that a reward is tried on, where the data have no right answer."""


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a new settings file is about: model, data, the column of the prompts, and all columns."""

    model: str
    train_dataset: str
    prompt_column: str
    columns: Sequence[str]

    @property
    def target(self) -> str | None:
        """The column with the right answers, if it has a usual name."""
        return usual(TARGETS, [column for column in self.columns if column != self.prompt_column])

    def settings(self, reward: str) -> dict[str, Any]:
        """Return the settings of the run; a reward is text, or a mapping as text, as in ``seedtune train --reward``."""
        from seedtune.cli.training import parse_reward

        column = {} if self.prompt_column == "prompt" else {"prompt_column": self.prompt_column}
        named = {"model": self.model, "train_dataset": self.train_dataset}
        return {**named, **column, "reward_funcs": [parse_reward(reward)]}


@dataclass(frozen=True, slots=True)
class Tried:
    """What a trial found: rows for training and held out, and lines to print."""

    train: int
    test: int
    lines: tuple[str, ...]


def usual(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """Return the first of the usual names that the data have."""
    return next((name for name in names if name in columns), None)


def check_model(name: str) -> None:
    """Raise ModelError for a folder that is no model, or a misspelt built-in name; MissingExtraError; without torch."""
    if name in BUILTIN:
        package, _, install = BUILTIN[name]
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(f"the built-in model {name!r}", install)
    elif is_folder(name) and not Path(model_path(name), "config.json").is_file():
        raise ModelError(f"there is no model folder {name!r} (with a config.json). Check the path.")
    elif "/" not in name and (near := suggest(name, BUILTIN)):
        raise ModelError(f"there is no built-in model {name!r}.{near} Or give a folder or a Hugging Face id.")


def columns_of(data: str) -> list[str]:
    """Return the columns of a file or data set; DataError, ConfigError or MissingExtraError if it is unreadable."""
    config = Config.create({"train_dataset": as_dataset(data)})
    assert config.train_dataset is not None
    with activities.doing("loading the data"):
        rows: Any = datasets.read(config.train_dataset, "train")
        return [str(name) for name in next(iter(rows))]


def prompt_column_of(columns: Sequence[str], given: str | None) -> str:
    """Return the column of the prompts; DataError if there is none of that name, or of a usual one."""
    if given is None:
        found = usual(PROMPTS, columns)
        if found is None:
            raise DataError(f"the data have no column 'prompt', but {', '.join(columns)}. Give --prompt-column COLUMN.")
        return found
    if given not in columns:
        raise DataError(f"--prompt-column {given!r} is not in the data: {', '.join(columns)}.{suggest(given, columns)}")
    return given


def try_out(run: NewRun, reward: str) -> Tried:
    """Build the task as a run does, and score two answers.

    Raises ConfigError, DataError, RewardError or MissingExtraError for data and rewards that do not load or fit.
    """
    config = recorded(Config.create(run.settings(reward)), TaskInputs())
    with activities.doing("trying the data and the reward"):
        task = built(config, TaskInputs())
        if not task.train:
            raise DataError(f"the data {run.train_dataset!r} have no rows for training. Give at least one.")
        scores = [_score(one, task, run, config.reward_timeout) for one in task.rewards if not one.inline]
    rows = (
        f"{len(task.train)} rows for training, {len(task.test)} held out; prompts in the column {run.prompt_column!r}"
    )
    return Tried(len(task.train), len(task.test), (rows, *scores))


def try_template(run: NewRun, code: str) -> Tried:
    """Try the code of a reward that is written for the user to fill in.  Raises the errors of `try_out`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rewards.py"
        file.write_text(code, encoding="utf-8")
        tried = try_out(run, f"{file}:{FUNCTION}")
    return Tried(tried.train, tried.test, tried.lines[:1])


def _score(reward: Reward, task: Task, run: NewRun, seconds: float) -> str:
    """Return a line with a reward's values of two answers; RewardError if it fails on them."""
    _check_parameters(reward.name, reward.function, run)
    examples = task.train[:2]
    texts = [_answer(example, run) for example in examples]
    names = sorted({name for example in examples for name in example.columns})
    keywords = keywords_of(examples, texts, names) | {"completion_ids": [[0] for _ in texts]}
    call = TimedThread(seconds).call(partial(attempt, reward.function, keywords, len(texts), seconds=seconds))
    if call.exception() is not None:
        raise RewardError(f"the reward {reward.name!r} took more than {seconds:g} s on two answers. Mend it.")
    result = call.result()
    for fault in result.faults.values():
        raise RewardError(f"the reward {reward.name!r} {fault.message}, tried on {texts[0]!r:.80}. Mend it.")
    return f"{reward.name} gives {' and '.join(map(number, result.values))} to {' and '.join(map(_short, texts))}"


def _check_parameters(name: str, function: Callable[..., Any], run: NewRun) -> None:
    """Raise ConfigError for a parameter that is neither a column of the data nor one of TRL's."""
    columns = [column for column in run.columns if column != run.prompt_column]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    for one in parameters:
        required = one.default is one.empty and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        if required and one.name not in ("prompts", "completions", *TRL, *columns):
            raise ConfigError(
                f"the reward {name!r} asks for {one.name!r}, which is no column of {run.train_dataset} "
                f"(they are: {', '.join(columns) or 'only the prompts'}).{suggest(one.name, columns)} "
                "Rename it, or the column."
            )


def _answer(example: Example, run: NewRun) -> str:
    target = example.columns.get(run.target) if run.target else None
    return target if isinstance(target, str) and target else SAMPLE


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
