"""Where output goes: results to standard output, errors to standard error; plain lines when not a terminal."""

from __future__ import annotations

from rich.console import Console

PLAIN_WIDTH = 200
"""Columns when the output is a file or a pipe, so that tables are not cut to a terminal nobody has."""


def console() -> Console:
    """The console of results."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=PLAIN_WIDTH, highlight=False)


def error_console() -> Console:
    """The console of errors."""
    return Console(stderr=True)
