"""Grids of numbers as answers: parse them, compare them, and check the rules of sudoku."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from seedtune.rewards.answer_tags import tagged
from seedtune.rewards.base import text_of

Grid = list[list[int]]
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
