"""Mini-sudoku with 4 × 4 cells (arXiv 2509.24372): reasoning-gym's puzzles with our own checker."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from seedtune.rewards.base import Reward
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.builtin.grids import grid_said, sudoku_solved
from seedtune.tasks.builtin.reasoning_gym import INSTRUCTION, GymSettings, items, tagged_answer
from seedtune.tasks.data.rows import examples


class SudokuSettings(Sizes):
    """Puzzles with ``least_empty`` to ``most_empty`` empty cells of 16."""

    train_size: int = Field(default=1000, ge=1, le=100_000)
    """Training puzzles."""

    least_empty: int = Field(default=8, ge=1, le=12)
    """Fewest empty cells (a few puzzles have less, so that the solution is unique)."""

    most_empty: int = Field(default=12, ge=1, le=12)
    """Most empty cells; with more the solution is not unique."""

    @model_validator(mode="after")
    def _in_order(self) -> SudokuSettings:
        if self.least_empty > self.most_empty:
            raise ValueError(f"least_empty={self.least_empty} is more than most_empty={self.most_empty}: swap them")
        return self


def mini_sudoku(settings: SudokuSettings) -> Task:
    """Create puzzles with a unique solution; reward 1 if solved, else half the share of right blanks."""
    empty = {"min_empty": settings.least_empty, "max_empty": settings.most_empty}
    source = GymSettings(
        train_size=settings.train_size, test_size=settings.test_size, seed=settings.seed, settings=empty
    )
    found = items("mini_sudoku", source)
    test = examples([_row(next(found)) for _ in range(settings.test_size)], "test")
    return Task(
        name="mini_sudoku",
        train=examples([_row(next(found)) for _ in range(settings.train_size)], "train"),
        test=test,
        rewards=(Reward("solved", sudoku_solved),),
        gold=tagged_answer,
        full_marks=1.0,
        answer=grid_said,
    )


def _row(entry: dict[str, Any]) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"{entry['question'].strip()}\n\n{INSTRUCTION}"}]
    made = entry["metadata"]
    return {"prompt": prompt, "puzzle": made["puzzle"], "solution": made["solution"], "answer": entry["answer"]}


KIND = TaskKind(
    build=mini_sudoku,
    settings=SudokuSettings,
    what="sudoku of 4 × 4 cells",
    reward="1 solved, else half the share of right blanks",
    sizes=(1000, 200),
    needs=("reasoning_gym",),
)
