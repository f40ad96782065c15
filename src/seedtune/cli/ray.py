"""``seedtune ray``: state and number of a run's Ray workers."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from seedtune.cli.console import say, say_table
from seedtune.cli.options import RunFolder
from seedtune.errors import ConfigError, RunError, resume_command

ray_app = typer.Typer(help="Watch the Ray workers of a run, and change their number.", no_args_is_help=True)

OLD = 30.0
"""Age in seconds of the last status after which a run's process is considered gone."""


@ray_app.command()
def status(run: RunFolder) -> None:
    """Every worker of a run: what it does, where it is, how far its weights are, and what happened lately."""
    from seedtune.engines.ray.status_file import status_of

    show(run, status_of(run), time.time())


@ray_app.command()
def scale(
    run: RunFolder,
    workers: Annotated[str, typer.Argument(metavar="N|KIND=N", help="How many, or of which kind how many.")],
) -> None:
    """Ask a run for another number of Ray workers; it takes effect in a second, and loses no work."""
    from seedtune.engines.ray.status_file import ask, status_of

    found = status_of(run)
    if time.time() - found["time"] > OLD:
        raise RunError(
            f"the process of {run} seems to be gone and cannot take the request. Go on with: {resume_command(run)}"
        )
    wished = wish_of(workers, found["target"])
    check_enough({**found["target"], **wished}, found["min_workers"])
    ask(run, wished)
    wanted = ", ".join(f"{count} of {kind}" for kind, count in wished.items())
    say(f"asked for {wanted}. See: seedtune ray status {shlex.quote(str(run))}")


def wish_of(text: str, target: dict[str, int]) -> dict[str, int]:
    """Parse ``4`` or ``vllm=4`` as numbers by kind; ConfigError if it is neither."""
    kind, _, number = text.rpartition("=")
    kinds = list(target)
    if not re.fullmatch("[0-9]{1,4}", number):
        raise ConfigError(f"{text!r} is not a number of workers. Write, say, 4, or {kinds[0]}=4.")
    if not kind and len(kinds) > 1:
        raise ConfigError(f"this run has several kinds of workers: say which, for example {kinds[0]}={number}.")
    if kind and kind not in target:
        raise ConfigError(f"this run has no workers of kind {kind!r}, only {', '.join(kinds)}.")
    return {kind or kinds[0]: int(number)}


def check_enough(target: dict[str, int], least: int) -> None:
    """Raise ConfigError if there would be fewer workers than the run needs."""
    count = sum(target.values())
    if count < least:
        raise ConfigError(f"{count} workers are fewer than ray.min_workers={least}. Ask for more.")


def show(run: Path, found: dict[str, Any], now: float) -> None:
    """Print the table of workers, and recent events."""
    age = now - found["time"]
    if age > OLD:
        say(f"no news for {age:.0f} s: the process of {run} seems to be gone")
    target = ", ".join(f"{count} × {kind}" for kind, count in found["target"].items())
    say(
        f"{run}: {len(found['workers'])} workers of {target} wanted; {found['position']} updates in the weights, "
        f"{found['open']} jobs open, {found['queued']} of them waiting; {found['lost']} workers lost so far"
    )
    headings = ("worker", "state", "since", "updates", "jobs", "busy", "host", "process")
    say_table(headings, map(_cells, found["workers"]))
    for note in found["notes"]:
        say(f"  {note}")


def _cells(row: dict[str, Any]) -> list[str]:
    since = "" if row["at_it"] is None else f"{row['at_it']:.1f} s"
    place = [row["host"] or "–", str(row["pid"] or "–")]
    return [row["name"], row["state"], since, str(row["position"]), str(row["jobs"]), f"{row['busy']:.0%}", *place]
