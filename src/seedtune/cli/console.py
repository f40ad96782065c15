"""Results go to standard output, errors to standard error; plain lines when not a terminal.

Seconds as a clock shows them.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console

PLAIN_WIDTH = 200
"""Columns when the output is a file or a pipe, so that tables are not cut to a terminal nobody has."""

# What is printed holds paths and completions: square brackets and :words: in them are text, not markup.
_AS_IT_IS: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


def console() -> Console:
    """The console of results."""
    plain = Console(**_AS_IT_IS)
    return plain if plain.is_terminal else Console(width=PLAIN_WIDTH, **_AS_IT_IS)


def error_console() -> Console:
    """The console of errors."""
    return Console(stderr=True, soft_wrap=True, **_AS_IT_IS)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
