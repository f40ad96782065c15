"""``seedtune tasks`` and ``seedtune validate``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import seedtune
from seedtune.cli.console import number, say, say_json, say_table
from seedtune.cli.options import AsJson, Sets, bounded
from seedtune.types import COUNT

if TYPE_CHECKING:
    from seedtune.tasks.base import Task, TaskKind
    from seedtune.tasks.validation import Check

ELSEWHERE = (
    "reasoning_gym:NAME  any of reasoning-gym's generators, with its scorer",
    "file.py:function    a task of your own: a function that returns a Task (docs/tasks.md)",
)


def list_tasks(to_json: AsJson = False) -> None:
    """List the built-in tasks: what they ask, their rewards, how many examples, and what to install."""
    from seedtune.tasks import TASKS

    if to_json:
        say_json(
            [
                {"task": name, "what": kind.what, "reward": kind.reward, "train": kind.sizes[0], "test": kind.sizes[1]}
                | {"needs": _needs(kind)}
                for name, kind in TASKS.items()
            ]
        )
        return
    rows = [
        (name, kind.what, kind.reward, *(f"{size:,}" for size in kind.sizes), _needs(kind))
        for name, kind in TASKS.items()
    ]
    say_table(("task", "what", "reward", "train", "test", "needs"), rows, right=("train", "test"))
    for line in ELSEWHERE:
        say(line)


def _needs(kind: TaskKind) -> str:
    from seedtune.rewards.optional import install

    missing = sorted({install(module) for module in kind.needs if importlib.util.find_spec(module) is None})
    if missing:
        return ", ".join(missing)
    return "installed" if kind.needs else "nothing"


def validate(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Built-in task, reasoning_gym:NAME, file.py:function or CONFIG.yaml.")
    ],
    items: Annotated[int, bounded(1, COUNT, help="Examples to score, held-out ones first.")] = 400,
    gold: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of gold answers; the task's own, 'gold' or 'answer'.")
    ] = None,
    sets: Sets = None,
) -> None:
    """Check a task's rewards before training on them.

    Gold answers must get full marks, empty ones none, and answers that are wrong on purpose less than gold.

    Exit code 0: so it is.  1: the table says what is broken.
    """
    from seedtune import activities
    from seedtune.tasks import validation

    config, built = _task(task, sets or ())
    with activities.doing(f"scoring answers to {built.name}"):
        checks = validation.validate(built, items=items, gold=gold, config=config)
    numbers = ("least", "mean", "most", "no value", "full marks", "seconds")
    title = f"{built.name}: {len(checks[0].values)} examples"
    say_table(("answers", "should get", *numbers, ""), map(_cells, checks), right=numbers, title=title)
    for check in checks:
        for line in filter(None, (check.broken, check.note)):
            say(f"{check.what}: {line}")
    broken = any(check.broken for check in checks)
    say(f"{built.name} is {'broken' if broken else 'valid'}")
    if broken:
        raise typer.Exit(1)


def _task(what: str, sets: Sequence[str]) -> tuple[seedtune.ESConfig, Task]:
    """Load a task and its settings from a name or a configuration file."""
    from seedtune.config.yaml_file import load_config, override
    from seedtune.tasks import create

    if Path(what).suffix in (".yaml", ".yml"):
        trainer = seedtune.ESTrainer(args=load_config(Path(what), sets))
        return trainer.config, trainer.task
    config = seedtune.ESConfig.create(override({"task": what}, sets))
    return config, create(config.task, config.task_args)


def _cells(check: Check) -> list[str]:
    values = map(number, (check.least, check.mean, check.most))
    counts = (str(check.unscored), str(check.full), f"{check.seconds:.2f}")
    verdict = "broken" if check.broken else "ok"
    return [check.what, check.expected, *values, *counts, f"{verdict}, with failures" if check.note else verdict]
