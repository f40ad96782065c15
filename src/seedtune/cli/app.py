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
    "apply": finished_runs.apply_pack,
    "push": finished_runs.push,
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

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": ("seedtune init", "seedtune init --train-dataset data.jsonl --reward rewards.py:my_reward -o my.yaml"),
    "train": ("seedtune train examples/toy.yaml --set sigma=0.04 --dry-run", "seedtune train examples/toy.yaml"),
    "resume": ("seedtune resume runs/toy --generations 44",),
    "eval": ("seedtune eval runs/toy --baseline base", "seedtune eval runs/toy --json - --limit 4"),
    "export": ("seedtune export runs/toy -o toy-model",),
    "verify": ("seedtune verify runs/toy", "seedtune verify runs/toy --json"),
    "diff": ("seedtune diff runs/toy runs/toy",),
    "pack": ("seedtune pack runs/toy -o toy.pack",),
    "apply": ("seedtune apply toy.pack -o toy-again",),
    "probe": ("seedtune probe examples/toy.yaml --members 8", "seedtune probe examples/toy.yaml --members 8 --json"),
    "samples": ("seedtune samples runs/toy --limit 3", "seedtune samples runs/toy --json"),
    "chat": ("seedtune chat runs/toy", "seedtune chat runs/toy --json < prompts.txt"),
    "tasks": ("seedtune tasks", "seedtune tasks --json"),
    "doctor": ("seedtune doctor", "seedtune doctor --engine toy --json"),
}
"""Examples at the end of a command's help, which a test runs in this order."""


def _epilog(name: str) -> str | None:
    """Return the examples of a command for its help; the first character keeps their lines."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in EXAMPLES[name])]) if name in EXAMPLES else None


for name, command in COMMANDS.items():
    app.command(name, epilog=_epilog(name))(command)


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
