"""Consoles: results go to standard output, errors to standard error; plain lines when not a terminal.

Also tables, and the formats of numbers and durations.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 200
"""Columns if the output is a file or a pipe, so that tables are not cut to the width of an absent terminal."""

# Output contains paths and completions, in which square brackets and :words: are text, not markup.
_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


def console() -> Console:
    """Return the console for results."""
    plain = Console(**_AS_IT_IS)
    return plain if plain.is_terminal else Console(width=PLAIN_WIDTH, **_AS_IT_IS)


def error_console() -> Console:
    """Return the console for errors."""
    return Console(stderr=True, soft_wrap=True, **_AS_IT_IS)


def say(line: str) -> None:
    """Print one line of results, without wrapping."""
    console().print(line, soft_wrap=True)


def say_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str | Text]],
    *,
    right: Collection[str] = (),
    title: str | None = None,
    texts: bool = False,
) -> None:
    """Print a table; numbers stand in the ``right``-justified columns, and long ``texts`` are folded."""
    table = Table(title=title, title_justify="left", show_lines=texts)
    for heading in headings:
        justify: Any = "right" if heading in right else "left"
        table.add_column(heading, justify=justify, overflow="fold" if texts else "ellipsis")
    for row in rows:
        table.add_row(*row)
    console().print(table)


def number(value: float | None) -> str:
    """Format a number with four digits, a missing one as a dash."""
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
