"""Consoles: results go to standard output, errors to standard error; plain lines when not a terminal.

Also the format of durations.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console

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


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
