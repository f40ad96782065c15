"""Puzzles on grids of numbers, made by reasoning-gym and scored here.

ARC: infer the rule that maps grids to grids (arXiv 1911.01547).  Mini-sudoku, with 4 × 4 cells (arXiv 2509.24372).  The
answer is a line of numbers per row, for example::

    In 4x4 Mini Sudoku:
    - Each row must contain each number from 1-4 exactly once
    - Each column must contain each number 1-4 exactly once
    - Each 2x2 subgrid must contain each number 1-4 exactly once
    Solve this 4x4 Mini Sudoku puzzle:
    2 _ _ 3
    _ _ 1 _
    1 _ 3 _
    3 _ 2 1
    Format your response as the puzzle above, with spaces separating each number within a row, and newlines
    separating rows.

    Give only your final answer between <answer> and </answer>.

    <answer>
    2 1 4 3
    4 3 1 2
    1 2 3 4
    3 4 2 1
    </answer>
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from pydantic import Field, model_validator

from seedtune.rewards.answer_tags import tagged
from seedtune.rewards.base import Reward, text_of
from seedtune.tasks.base import Sizes, Task, TaskKind
from seedtune.tasks.builtin.reasoning_gym import items, question, tagged_answer
from seedtune.tasks.data.rows import examples

Grid = list[list[int]]
Entries = Iterator[dict[str, Any]]
LENGTH = 20_000
"""Longest answer in characters; a longer one is not read."""
SHAPE_MARKS = 0.1
"""Reward of a wrong grid of the right shape."""
_LINE = re.compile(r"[0-9]{1,2}(?:[ \t,|]+[0-9]{1,2})*", re.ASCII)


def grid_of(text: str | None) -> Grid | None:
    """Parse lines of numbers, separated by blanks, commas or bars, with optional brackets; None if malformed."""
    if not text or len(text) > LENGTH:
        return None
    lines = [line.strip(" \t\r[],|") for line in text.strip().split("\n")]
    if not all(_LINE.fullmatch(line) for line in lines):
        return None
    grid = [[int(cell) for cell in re.findall("[0-9]+", line)] for line in lines]
    return grid if len({len(row) for row in grid}) == 1 else None


def grid_said(text: str) -> str:
    """Return the grid in ``<answer>`` with a line per row and blanks between numbers; empty if there is none."""
    return "\n".join(" ".join(str(cell) for cell in row) for row in grid_of(tagged(text)) or ())


def same_grid(completions: Sequence[Any], output: Sequence[Grid], **_: Any) -> list[float]:
    """Return 1 if the ``<answer>`` is the grid ``output``, 0.1 for another grid of its shape, else 0."""
    return [_same(grid_of(tagged(text_of(c))), right) for c, right in zip(completions, output, strict=True)]


def _same(found: Grid | None, right: Grid) -> float:
    if found is None or _shape(found) != _shape(right):
        return 0.0
    return 1.0 if found == [list(row) for row in right] else SHAPE_MARKS


def _shape(grid: Grid) -> tuple[int, int]:
    return len(grid), len(grid[0])


def sudoku_solved(
    completions: Sequence[Any], puzzle: Sequence[Grid], solution: Sequence[Grid], **_: Any
) -> list[float]:
    """Return 1 for a grid in ``<answer>`` that keeps the clues and obeys the rules.

    Otherwise half the share of blanks that match ``solution`` if the clues are kept, else 0.  Blanks of a ``puzzle``
    are written as 0.
    """
    return [
        _sudoku(grid_of(tagged(text_of(c))), clues, right)
        for c, clues, right in zip(completions, puzzle, solution, strict=True)
    ]


def _sudoku(found: Grid | None, clues: Grid, right: Grid) -> float:
    if found is None or _shape(found) != _shape(clues):
        return 0.0
    cells = [(f, c, r) for row in zip(found, clues, right, strict=True) for f, c, r in zip(*row, strict=True)]
    if any(clue and filled != clue for filled, clue, _ in cells):
        return 0.0
    if obeys_rules(found):
        return 1.0
    blanks = [filled == true for filled, clue, true in cells if not clue]
    return 0.5 * sum(blanks) / max(1, len(blanks))


def obeys_rules(grid: Grid) -> bool:
    """Whether every row, column and box of a square grid contains each number exactly once."""
    size = len(grid)
    box = round(size**0.5)
    boxes = [
        [grid[row + i][column + j] for i in range(box) for j in range(box)]
        for row in range(0, size, box)
        for column in range(0, size, box)
    ]
    columns = [[row[place] for row in grid] for place in range(size)]
    return all(sorted(unit) == list(range(1, size + 1)) for unit in (*grid, *columns, *boxes))


def _task(
    name: str,
    settings: Sizes,
    train: Entries,
    test: Entries,
    row: Callable[[dict[str, Any]], dict[str, Any]],
    reward: Reward,
) -> Task:
    """Return a task of grids; held-out rows are drawn first, since both may come from one generator."""
    held_out = examples(map(row, islice(test, settings.test_size)), "test")
    return Task(
        name=name,
        train=examples(map(row, islice(train, settings.train_size)), "train"),
        test=held_out,
        rewards=(reward,),
        gold=tagged_answer,
        full_marks=1.0,
        answer=grid_said,
    )


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
    test = train = items(settings.generator, settings, settings.settings)
    if settings.generator == "arc_agi":
        # ARC's own split: no rule of its training tasks occurs in its evaluation tasks, in any rotation.
        test = items("arc_agi", settings, {**settings.settings, "use_train": False})
        train = items("arc_agi", settings, {**settings.settings, "use_eval": False})
    return _task("arc", settings, train, test, _arc_row, Reward("grid", same_grid))


def _arc_row(entry: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": question(entry), "output": grid_of(entry["answer"]), "answer": entry["answer"]}


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
    found = items("mini_sudoku", settings, empty)
    return _task("mini_sudoku", settings, found, found, _sudoku_row, Reward("solved", sudoku_solved))


def _sudoku_row(entry: dict[str, Any]) -> dict[str, Any]:
    made = entry["metadata"]
    return {
        "prompt": question(entry),
        "puzzle": made["puzzle"],
        "solution": made["solution"],
        "answer": entry["answer"],
    }


ARC = TaskKind(
    build=arc,
    settings=ArcSettings,
    what="abstract rules on grids (ARC-AGI, RE-ARC)",
    reward="1 for the right grid, 0.1 for its shape",
    sizes=(400, 200),
    needs=("reasoning_gym",),
)
MINI_SUDOKU = TaskKind(
    build=mini_sudoku,
    settings=SudokuSettings,
    what="sudoku of 4 × 4 cells",
    reward="1 solved, else half the share of right blanks",
    sizes=(1000, 200),
    needs=("reasoning_gym",),
)
