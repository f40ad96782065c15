"""Implementation of ``seedtune tasks`` and ``seedtune validate``."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.table import Table

from seedtune import tasks
from seedtune.cli.console import console
from seedtune.config.config import Config
from seedtune.config.yaml_file import load_config, override
from seedtune.rewards.optional import install
from seedtune.tasks.base import Task, TaskKind
from seedtune.tasks.validation import Check, validate

ELSEWHERE = (
    "reasoning_gym:NAME  any of reasoning-gym's generators, with its scorer",
    "file.py:function    a task of your own: a function that returns a Task (docs/tasks.md)",
)


def tasks_command() -> None:
    """Print a table of the built-in tasks, and the alternatives to a built-in task."""
    table = Table()
    for heading in ("task", "what", "reward", "train", "test", "needs"):
        table.add_column(heading, justify="right" if heading in ("train", "test") else "left")
    for name, kind in tasks.TASKS.items():
        train, test = kind.sizes
        table.add_row(name, kind.what, kind.reward, f"{train:,}", f"{test:,}", _needs(kind))
    console().print(table)
    for line in ELSEWHERE:
        console().print(line, soft_wrap=True)


def _needs(kind: TaskKind) -> str:
    missing = sorted({install(module) for module in kind.needs if importlib.util.find_spec(module) is None})
    if missing:
        return ", ".join(missing)
    return "installed" if kind.needs else "nothing"


def validate_command(what: str, items: int, gold: str | None, sets: Sequence[str]) -> None:
    """Validate a task and print a table; exit code 1 if it is broken."""
    config, task = _task(what, sets)
    checks = validate(task, items=items, gold=gold, config=config)
    table = Table(title=f"{task.name}: {checks[0].items} examples", title_justify="left")
    for heading in ("answers", "should get", "least", "mean", "most", "no value", "full marks", "seconds", ""):
        table.add_column(heading, justify="left" if heading in ("answers", "should get", "") else "right")
    for check in checks:
        table.add_row(*_cells(check))
    console().print(table)
    broken = [check for check in checks if check.broken]
    for check in checks:
        for line in filter(None, (check.broken, check.note)):
            console().print(f"{check.what}: {line}", soft_wrap=True)
    console().print(f"{task.name} is {'broken' if broken else 'valid'}", soft_wrap=True)
    if broken:
        raise typer.Exit(1)


def _task(what: str, sets: Sequence[str]) -> tuple[Config, Task]:
    """Load a task and its settings from a name or a configuration file."""
    if Path(what).suffix in (".yaml", ".yml"):
        from seedtune.trainer import Trainer

        trainer = Trainer(load_config(Path(what), sets))
        return trainer.config, trainer.task
    config = Config.create(override({"task": what}, sets))
    return config, tasks.create(config.task, config.task_args)


def _cells(check: Check) -> list[str]:
    values = ("–" if math.isnan(value) else f"{value:.4g}" for value in (check.least, check.mean, check.most))
    counts = (str(check.unscored), str(check.full), f"{check.seconds:.2f}")
    verdict = "broken" if check.broken else "ok"
    return [check.what, check.expected, *values, *counts, f"{verdict}, with failures" if check.note else verdict]
