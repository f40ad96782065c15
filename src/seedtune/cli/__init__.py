"""The ``seedtune`` command."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from seedtune.errors import SeedtuneError


def main() -> None:
    """Run a command; user errors are printed as one line with exit code 1, an interrupt exits with 130."""
    from seedtune.cli.app import app
    from seedtune.cli.console import error_console
    from seedtune.cli.signs import SignsOfLife

    signal.signal(signal.SIGTERM, _interrupt)
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
    """Treat SIGTERM (a scheduler's, say) as an interrupt."""
    raise KeyboardInterrupt
