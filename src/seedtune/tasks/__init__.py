"""Tasks: the prompts to train on and the rewards that score completions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedtune.errors import ConfigError, suggest
from seedtune.rewards.base import Reward
from seedtune.tasks.base import Task, TaskKind
from seedtune.tasks.builtin import (
    conciseness,
    countdown,
    grids,
    instruction_format,
    json_schema,
    math_questions,
    multiple_choice,
    number_guessing,
    reasoning_gym,
    right_and_brief,
    toy,
)
from seedtune.tasks.data.rows import examples
from seedtune.tasks.user_task import from_file, validated

__all__ = ["TASKS", "Reward", "Task", "TaskKind", "create", "examples"]

TASKS: dict[str, TaskKind] = {
    "conciseness": conciseness.KIND,
    "countdown": countdown.KIND,
    "gsm8k": math_questions.GSM8K,
    "math": math_questions.MATH,
    "mini_sudoku": grids.MINI_SUDOKU,
    "arc": grids.ARC,
    "json_schema": json_schema.KIND,
    "instruction_format": instruction_format.KIND,
    "multiple_choice": multiple_choice.KIND,
    "number_guessing": number_guessing.KIND,
    "right_and_brief": right_and_brief.KIND,
    "toy": toy.KIND,
}
"""Built-in tasks by name; ``reasoning_gym:NAME`` and ``file.py:function`` need no entry here."""


def create(name: str, args: Mapping[str, Any] | None = None) -> Task:
    """Create a task by name with the settings ``args``; raise ConfigError, suggesting a name, if it is unknown."""
    given = args or {}
    if name.startswith(reasoning_gym.PREFIX):
        return reasoning_gym.from_gym(name.removeprefix(reasoning_gym.PREFIX), given)
    if name.rpartition(":")[0].endswith(".py"):
        return from_file(name, given)
    if name not in TASKS:
        raise ConfigError(
            f"task={name!r} is not a built-in task.{suggest(name, TASKS)} Known: {', '.join(TASKS)}; or "
            f"{reasoning_gym.PREFIX}NAME, or file.py:function"
        )
    kind = TASKS[name]
    return kind.build(validated(kind.settings, given))


def recorded_args(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings ``args`` of a task as a run records them: paths are absolute.

    Of a user's task that is text with a folder or a suffix which names a file, as seen from the working directory.
    """
    if name not in TASKS:
        return {key: os.path.abspath(value) if _is_path(value) else value for key, value in args.items()}
    made = validated(TASKS[name].settings, args)
    return {key: getattr(made, key) if isinstance(value, str) else value for key, value in args.items()}


def _is_path(value: Any) -> bool:
    """Return whether a setting is the path of a file; a bare word, such as ``train``, may mean anything."""
    return isinstance(value, str) and value != Path(value).stem and os.path.isfile(value)
