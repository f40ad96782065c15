"""The ``seedtune`` command."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from seedtune.activities import interrupted
from seedtune.errors import SeedtuneError


def main() -> None:
    """Run a command; user errors are printed as one line with exit code 1, an interrupt exits with 130."""
    try:
        _run()
    except ImportError as error:  # the named boundary: an installation without what seedtune needs
        if (error.name or "seedtune").partition(".")[0] == "seedtune":
            raise
        sys.stderr.write(f"error: {' '.join(str(error).splitlines())}. {_install(str(error.name))}\n")
        sys.exit(1)


def _install(module: str) -> str:
    """Return what to do about a module that is missing or does not import."""
    package = module.partition(".")[0]
    return (
        f"Install it with: pip install {'PyYAML' if package == 'yaml' else package}   (seedtune doctor checks the rest)"
    )


def _run() -> None:
    from seedtune.cli.app import app
    from seedtune.cli.console import LogLines, accept_any_text, error_console
    from seedtune.cli.signs import SignsOfLife

    accept_any_text()
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(signal.SIGHUP, partial(_hang_up, [file for file in (1, 2) if os.isatty(file)]))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a command in the background ignores Ctrl-C
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _unraisable
    logging.getLogger("seedtune").handlers = [LogLines(logging.WARNING)]
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with SignsOfLife(error_console()):
            app(standalone_mode=True)
    except SeedtuneError as error:
        error_console().print("error: " + " ".join(str(error).splitlines()))
        sys.exit(1)
    except KeyboardInterrupt:
        error_console().print("stopped.")
        sys.exit(130)


def _interrupt(_signal: int, _frame: Any) -> None:
    """Treat Ctrl-C and SIGTERM (a scheduler's, say) alike."""
    interrupted.set()
    raise KeyboardInterrupt


def _hang_up(terminals: Sequence[int], number: int, frame: Any) -> None:
    """Stop when the terminal closes, which then takes no more output."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for file in terminals:
        os.dup2(nothing, file)
    _interrupt(number, frame)


def _unraisable(dropped: sys.UnraisableHookArgs) -> None:
    """Report an exception that Python drops, but not an interrupt, which `interrupted` keeps."""
    if dropped.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(dropped)
