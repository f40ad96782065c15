"""Consoles: results go to standard output, errors to standard error; plain lines when not a terminal.

Also tables, and the formats of numbers and durations.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import select
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from io import TextIOWrapper
from numbers import Real
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from seedtune import activities

PLAIN_WIDTH = 200
"""Columns if the output is a file or a pipe, so that tables are not cut to the width of an absent terminal."""

# Output contains paths and completions, in which square brackets and :words: are text, not markup.
_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that terminals obey (ESC, C1, carriage returns), or that reverse or break lines."""


def plain(text: str) -> str:
    """Return text with every character that a terminal would obey escaped as in JSON, which can only be read."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class PlainConsole(Console):
    """A console on which completions, file names and errors can only be read: see `plain`."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text of `plain`, so that columns are as wide as what they show."""
        return super().render_str(plain(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything printed, with texts of `plain` and rich's own control codes."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)


def accept_any_text() -> None:
    """Let no character end a command: where the output's encoding lacks one (σ in Latin-1), print its escape.

    A closed output (``>&-``) takes anything and keeps nothing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="replace"))  # noqa: SIM115 - until the process ends
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def console() -> Console:
    """Return the console for results."""
    found = PlainConsole(**_AS_IT_IS)
    return found if found.is_terminal else PlainConsole(width=PLAIN_WIDTH, **_AS_IT_IS)


def error_console() -> Console:
    """Return the console for errors."""
    return PlainConsole(stderr=True, soft_wrap=True, **_AS_IT_IS)


class LogLines(logging.Handler):
    """Prints warnings of seedtune as plain lines on the console for errors; they may repeat completions."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one warning."""
        error_console().print(self.format(record))


def say(line: str) -> None:
    """Print one line of results, without wrapping."""
    console().print(line, soft_wrap=True)


def read_line(question: str) -> str:
    """Ask on the terminal and return the line that is typed.  Raises EOFError at the end of input (Ctrl-D).

    ``input`` alone would notice a Ctrl-C typed right after the question with the next key only: its signal may come
    before the read begins, which nothing then interrupts.
    """
    sys.stdout.write(question)
    sys.stdout.flush()
    with activities.asking():
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            pass
        return input()


def say_json(value: Any) -> None:
    """Write data, also dataclasses, as JSON in ASCII; numbers that JSON lacks become null, other objects text."""
    sys.stdout.write(plain(json.dumps(as_json(value), indent=2, allow_nan=False)) + "\n")


def as_json(value: Any) -> Any:
    """Return plain JSON data: see `say_json`."""
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: as_json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(inner) for inner in value]
    if isinstance(value, Real) and not isinstance(value, int):
        return float(value) if math.isfinite(value) else None
    return value if isinstance(value, str | int | bool | None) else str(value)


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
