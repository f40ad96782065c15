"""The root of the ``seedtune`` command.  Every command imports its dependencies when it runs: ``--help`` is fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from seedtune.cli import eval_and_samples, finished_runs, probe_and_plan, tasks, training
from seedtune.cli.chat import side_by_side
from seedtune.cli.doctor import diagnosis
from seedtune.cli.init import new_settings
from seedtune.cli.ray import ray_app
from seedtune.cli.reports import report_and_watch

app = typer.Typer(
    name="seedtune",
    help="Fine-tune language models with evolution strategies: no gradients, inference memory, any reward."
    "\n\nStart with:  seedtune train examples/right-and-brief.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(ray_app, name="ray")

COMMANDS: dict[str, Callable[..., None]] = {
    "init": new_settings.init,
    "train": training.train,
    "resume": training.resume,
    "eval": eval_and_samples.evaluate,
    "export": finished_runs.export,
    "verify": finished_runs.verify,
    "diff": finished_runs.diff,
    "pack": finished_runs.pack,
    "unpack": finished_runs.unpack,
    "probe": probe_and_plan.probe,
    "plan": probe_and_plan.plan,
    "samples": eval_and_samples.samples,
    "chat": side_by_side.chat,
    "inspect": eval_and_samples.inspect,
    "report": report_and_watch.report,
    "watch": report_and_watch.watch,
    "tasks": tasks.list_tasks,
    "validate": tasks.validate,
    "doctor": diagnosis.doctor,
}
"""Commands in the order of the help."""

for name, command in COMMANDS.items():
    app.command(name)(command)


def _version(show: bool) -> None:
    if show:
        from seedtune.types import __version__

        typer.echo(f"seedtune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass
