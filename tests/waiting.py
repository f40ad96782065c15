"""Waiting in tests: always for a condition, and for so long that only a hang is too long.  Timings decide nothing."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

BOUND = 600.0
"""Seconds that a machine may take, however slow and busy it is, for anything that a test waits for."""


def wait_until(
    happened: Callable[[], object],
    *,
    process: subprocess.Popen[str] | None = None,
    turn: Callable[[], object] = lambda: time.sleep(0.02),
    seconds: float = BOUND,
) -> bool:
    """True as soon as something happened, False if the ``process`` that was to do it ended first.

    Meanwhile ``turn`` is called again and again: a test whose own thread does the work gives a piece of it.
    """
    end = time.monotonic() + seconds
    while not happened():
        if process is not None and process.poll() is not None:
            return bool(happened())
        assert time.monotonic() < end, f"nothing happened within {seconds:g} s"
        turn()
    return True


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
