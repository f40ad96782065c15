"""The commands.  Each imports what it needs when it runs, so that ``--help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from seedtune.trainer import Trainer

app = typer.Typer(
    name="seedtune",
    help="Fine-tune language models with evolution strategies: no gradients, inference memory, any reward."
    "\n\nStart with:  seedtune train examples/conciseness.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, e.g. --set sigma=0.006 --set transformers.dtype=float32",
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


def _version(show: bool) -> None:
    if show:
        from seedtune import __version__

        typer.echo(f"seedtune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings; see examples/.")],
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, train nothing.")] = False,
) -> None:
    """Fine-tune a model.

    The run directory (output_dir) then holds the ledger, metrics.jsonl, samples.jsonl, snapshots and
    report.html.
    A run that was stopped, killed or crashed goes on with: seedtune resume RUN
    """
    from seedtune.config import load_config
    from seedtune.trainer import Trainer

    settings = load_config(config, sets or ())
    trainer = Trainer(settings)
    if dry_run:
        _dry_run(trainer)
        return
    _run(trainer, resume=False)


@app.command()
def resume(
    run: RunFolder,
    generations: Annotated[int | None, typer.Option(help="Train to this many generations in all.")] = None,
    sets: Sets = None,
) -> None:
    """Go on with a run after the last complete generation, bit for bit as if it had never stopped."""
    from seedtune import replay
    from seedtune.config import Config, override
    from seedtune.trainer import Trainer

    config = replay.run_config(run)
    config = Config.create(override(config.model_dump(), sets or ()))
    if generations is not None:
        config = config.replace(generations=generations)
    _run(Trainer(config), resume=True)


@app.command(name="eval")
def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run directory, model folder, id or built-in name.")
    ],
    task: Annotated[str | None, typer.Option(help="Built-in task; a run's own by default.")] = None,
    generation: Annotated[int | None, typer.Option(help="The run's model after this many generations.")] = None,
    sets: Sets = None,
) -> None:
    """Mean reward and length of greedy answers on a task's held-out prompts."""
    from seedtune.cli.commands import evaluate_command

    evaluate_command(what, task, generation, sets or [])


@app.command()
def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, new or empty.")],
    generation: Annotated[
        int | None, typer.Option(help="The model after this many generations; all by default.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the base model's by default.")
    ] = None,
) -> None:
    """Write the fine-tuned model as a Hugging Face folder, for transformers, vLLM and all that read it."""
    from seedtune.cli.commands import export_command

    export_command(run, output, generation, dtype)


@app.command()
def samples(
    run: RunFolder,
    limit: Annotated[int, typer.Option(help="Prompts to show; 0 shows all.")] = 12,
) -> None:
    """Held-out answers before and after training, side by side."""
    from seedtune.cli.commands import samples_command

    samples_command(run, limit)


@app.command()
def tasks() -> None:
    """List the built-in tasks."""
    from seedtune.cli.commands import tasks_command

    tasks_command()


def _dry_run(trainer: Trainer) -> None:
    from seedtune.cli.commands import dry_run

    dry_run(trainer)


def _run(trainer: Trainer, *, resume: bool) -> None:
    """Train with progress; an interrupt says how to go on."""
    from seedtune.cli.commands import run_training

    run_training(trainer, resume=resume)
