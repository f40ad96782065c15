"""ARC: infer the rule that maps grids to grids (arXiv 1911.01547), from reasoning-gym; the answer is a grid."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from seedtune.rewards.base import Reward
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.builtin.grids import grid_of, grid_said, same_grid
from seedtune.tasks.builtin.reasoning_gym import INSTRUCTION, GymSettings, items, tagged_answer
from seedtune.tasks.data.rows import examples


class ArcSettings(Sizes):
    """The generator of ARC tasks and its settings."""

    train_size: int = Field(default=400, ge=1, le=100_000)
    """Training examples."""

    generator: Literal["arc_agi", "rearc", "arc_1d"] = "arc_agi"
    """``arc_agi``: the 800 public tasks, rotated, mirrored and recoloured; ``rearc``: new grids for the 400 training
    tasks; ``arc_1d``: rows instead of grids."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of reasoning-gym's generator."""


def arc(settings: ArcSettings) -> Task:
    """Create prompts with examples of a rule and one more input; reward 1 for the right grid, 0.1 for its shape."""
    public = settings.generator == "arc_agi"
    test = items(settings.generator, _source(settings, {"use_train": False} if public else {}))
    rows = [_row(next(test)) for _ in range(settings.test_size)]
    # ARC's own split: no rule of its training tasks occurs in its evaluation tasks, in any rotation.
    train = items(settings.generator, _source(settings, {"use_eval": False})) if public else test
    return Task(
        name="arc",
        train=examples([_row(next(train)) for _ in range(settings.train_size)], "train"),
        test=examples(rows, "test"),
        rewards=(Reward("grid", same_grid),),
        gold=tagged_answer,
        full_marks=1.0,
        answer=grid_said,
    )


def _source(settings: ArcSettings, part: dict[str, Any]) -> GymSettings:
    sizes = {"train_size": settings.train_size, "test_size": settings.test_size, "seed": settings.seed}
    return GymSettings(**sizes, settings={**settings.settings, **part})


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"{entry['question'].strip()}\n\n{INSTRUCTION}"}]
    return {"prompt": prompt, "output": grid_of(entry["answer"]), "answer": entry["answer"]}


KIND = TaskKind(
    build=arc,
    settings=ArcSettings,
    what="abstract rules on grids (ARC-AGI, RE-ARC)",
    reward="1 for the right grid, 0.1 for its shape",
    sizes=(400, 200),
    needs=("reasoning_gym",),
)
