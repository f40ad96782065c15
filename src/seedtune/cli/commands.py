"""Implementation of the train, resume, export and samples commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from seedtune.cli.console import console, error_console
from seedtune.cli.progress import ProgressLines, ReplayProgress
from seedtune.errors import ConfigError, RunError, resume_command
from seedtune.evaluation import comparison, report
from seedtune.run import directory, recorded_config, replay
from seedtune.run.artifacts.export import Export, export_run
from seedtune.strategies import populations
from seedtune.trainer import Trainer

DTYPES = ("float32", "bfloat16", "float16")
MARKS = ("red", "bold green")
"""Styles of text found only before training, and only after training."""


def run_training(trainer: Trainer, *, resume: bool) -> None:
    """Train with progress lines, then print the results; after Ctrl-C the run can be resumed (exit code 130)."""
    lines = ProgressLines(console())
    trainer.callbacks = (lines,)
    try:
        with ReplayProgress(console()) as trainer.session.replaying:
            trainer.train(resume=resume)
    except KeyboardInterrupt:
        lines.stop()
        _say_interrupted(trainer)
        raise typer.Exit(130) from None
    finally:
        lines.stop()
        trainer.release()
    _say_done(trainer, lines)


def _say_interrupted(trainer: Trainer) -> None:
    paths = trainer.paths
    if not paths.config.exists():
        error_console().print("stopped before the run began; nothing was written.")
        return
    error_console().print(
        f"stopped after generation {trainer.generation}; nothing is lost. Continue with: {resume_command(paths.root)}"
    )


def _say_done(trainer: Trainer, lines: ProgressLines) -> None:
    root = trainer.paths.root
    lines.say(f"done: {trainer.generation} generations. Report: {trainer.paths.report}")
    say_changes(trainer.paths)
    size = trainer.paths.ledger.stat().st_size
    lines.say(
        f"the fine-tune is {trainer.paths.ledger}, {size:,} bytes: seedtune verify {root} replays it bit for bit, "
        f"seedtune pack {root} -o FILE ships it"
    )
    lines.say(f"next: seedtune samples {root}   seedtune export {root} -o MODEL")


def dry_run(trainer: Trainer) -> None:
    """Load everything a run needs and print its size."""
    from seedtune import engines

    config = trainer.config
    trainer.paths.check_unused()
    engine = engines.create(config)
    info = replay.loaded(engine)
    lines = ProgressLines(console())
    lines.describe(trainer, info)
    completions = min(config.prompts_per_generation, len(trainer.task.train)) * config.samples_per_prompt
    sizes = [(size + config.evaluate_unperturbed) * completions for size in populations(config)]
    lines.say(
        f"{max(sizes):,} rollouts a generation{'' if min(sizes) == max(sizes) else ' at most'}, {sum(sizes):,} in all; "
        f"at most {max(sizes) * config.max_completion_length:,} new tokens a generation. Nothing was written."
    )
    engine.close()


def export_command(run: Path, wanted: tuple[Path, str | None], generation: int | None, sets: Sequence[str]) -> None:
    """Export a run's model as a folder in a given dtype, and print how to load it."""
    output, dtype = wanted
    check_dtype(dtype)
    with ReplayProgress(console()) as progress:
        done = export_run(run, output, generation=generation, dtype=dtype, sets=sets, progress=progress)
    say_exported(done, output)


def check_dtype(dtype: str | None) -> None:
    """Raise ConfigError if a model cannot be written in this dtype."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}.")


def say_exported(done: Export, output: Path) -> None:
    """Print the result of an export, its duration, and how to load the model."""
    if done.replayed:
        console().print(f"replayed {done.replayed} generations in {done.seconds:.2f} s", soft_wrap=True)
    console().print(f"wrote the model after generation {done.generation} to {output}", soft_wrap=True)
    console().print(f'load it with: AutoModelForCausalLM.from_pretrained("{output}")', soft_wrap=True)


def samples_command(run: Path, limit: int) -> None:
    """Print a table of held-out prompts with the completions before and after training, and statistics over all."""
    recorded_config.run_config(run)
    paths = directory.RunPaths(run)
    pairs = report.before_and_after(paths)
    if not pairs:
        raise RunError(f"{run} has no held-out answers yet. Let it finish its first evaluation.")
    first, last = pairs[0][0]["generation"], pairs[0][1]["generation"]
    console().print(f"{run}: {len(pairs[: limit or None])} of {len(pairs)} held-out answers", soft_wrap=True)
    table = Table(show_lines=True)
    for heading in ("prompt", f"generation {first}", "reward", f"generation {last}", "reward"):
        table.add_column(heading, justify="right" if heading == "reward" else "left", overflow="fold")
    for before, after in pairs[: limit or None]:
        texts = comparison.marked(str(before["completion"]), str(after["completion"]))
        cells = [_coloured(spans, style) for spans, style in zip(texts, MARKS, strict=True)]
        table.add_row(report.prompt_text(before["prompt"]), cells[0], _reward(before), cells[1], _reward(after))
    console().print(table)
    say_changes(paths)


def say_changes(paths: directory.RunPaths) -> None:
    """Print the first and the last held-out evaluation with intervals, and the last generation's alarms."""
    found = comparison.compare(paths)
    if found is None:
        return
    table = Table()
    headings = (f"{found.prompts} held-out prompts", *(f"generation {one}" for one in found.generations), "difference")
    for heading in headings:
        table.add_column(heading, justify="right" if table.columns else "left")
    for change in found.changes:
        table.add_row(change.measure, *change.cells)
    console().print(table)
    console().print("means; [low, high]: 95 % bootstrap intervals, differences prompt by prompt", soft_wrap=True)
    alarms = comparison.last_alarms(paths)
    console().print(f"alarms in the last generation: {len(alarms) or 'none'}", soft_wrap=True)
    for alarm in alarms:
        console().print(f"  ! {alarm}", soft_wrap=True)


def _coloured(spans: Sequence[comparison.DiffPiece], style: str) -> Text:
    return Text.assemble(*((piece, style if differs else "") for piece, differs in spans))


def _reward(row: report.Row) -> str:
    return "–" if row["reward"] is None else f"{row['reward']:.4g}"
