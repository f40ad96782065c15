"""Which task a trainer trains: a built-in one, or the caller's own data and rewards."""

from __future__ import annotations

from collections.abc import Sequence

from seedtune.config import Config
from seedtune.errors import ConfigError, DataError
from seedtune.tasks import create
from seedtune.tasks.base import RewardFunction, Task
from seedtune.tasks.data import Rows, examples, rewards


def chosen(
    config: Config,
    functions: RewardFunction | Sequence[RewardFunction] | None,
    weights: Sequence[float] | None,
    data: tuple[Rows | None, Rows | None],
) -> Task:
    """The built-in task, or the caller's data and rewards; DataError if there is nothing to train on."""
    if functions is None and data[0] is None:
        if config.task == "custom":
            raise ConfigError("this run had its own data and rewards: resume it from Python with the same Trainer.")
        if weights is not None or data[1] is not None:
            raise ConfigError("reward_weights and eval_dataset need reward_funcs and train_dataset.")
        task = create(config.task)
    elif functions is None or data[0] is None:
        raise ConfigError("give both reward_funcs and train_dataset, or neither and a built-in task.")
    else:
        train, test = examples(data[0], "train"), examples(data[1], "eval")
        task = Task("custom", train, test, rewards(functions, weights))
    _check_task(config, task)
    return task


def _check_task(config: Config, task: Task) -> None:
    if not task.train:
        raise DataError(f"the training data of task {task.name!r} is empty. Give at least one row with a 'prompt'.")
    if config.system_prompt is not None and any(isinstance(e.prompt, str) for e in (*task.train, *task.test)):
        raise ConfigError(
            f"system_prompt={config.system_prompt!r} needs chat prompts, but task {task.name!r} has "
            "plain text. Make its prompts lists of messages, or leave system_prompt out."
        )
