"""The commands that write the report of runs, and serve it while a run is in progress."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from seedtune.cli.console import say
from seedtune.cli.options import RunFolder, bounded, path
from seedtune.errors import ConfigError, RunError, storage_cause


def report(
    runs: Annotated[list[Path], typer.Argument(parser=path, metavar="RUN…", help="Run directories.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", parser=path, help="File to write; RUN/report.html for one run.")
    ] = None,
) -> None:
    """Write the report of a run, or of several runs compared, as one HTML file that opens without a network.

    Rewards, held-out evaluations with intervals, answers before and after, alarms and what to do about them, drift,
    speed, settings and versions.  No model is loaded.

    Example:  seedtune report runs/first runs/second -o compared.html
    """
    from seedtune.evaluation.report import render
    from seedtune.numerics.machine import disk
    from seedtune.run import directory, recorded_config

    for run in runs:
        recorded_config.run_config(run)
    if output is None and len(runs) > 1:
        raise ConfigError(f"{len(runs)} runs have no common place for their report. Name a file: -o compared.html")
    held = [directory.RunPaths(run) for run in runs]
    file = held[0].report if output is None else output
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        disk.put(file, render(*held).encode())
    except OSError as error:
        cause, fix = storage_cause(error)
        raise RunError(f"cannot write {file}: {cause}. {fix}, or choose another --output.") from error
    say(f"wrote {file}, {file.stat().st_size:,} bytes: open it in a browser, or send it")


def watch(
    run: RunFolder,
    port: Annotated[int, bounded(0, 65535, help="Port of this machine; 0 takes a free one.")] = 0,
) -> None:
    """Show the report of a run in progress in your browser: it refreshes, and says when the run stalls or has ended.

    Only this machine can open it, only with the address that is printed, and nothing is written.  For a run on
    another machine:  ssh -L 8000:127.0.0.1:8000 HOST seedtune watch RUN --port 8000
    """
    from seedtune.evaluation.live_report import LiveServer
    from seedtune.run import directory, recorded_config

    recorded_config.run_config(run)
    with LiveServer(directory.RunPaths(run), port=port, announce=say) as server:
        say(f"watching {run}: open {server.url} (Ctrl-C stops watching, not the run)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
