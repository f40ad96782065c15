"""What the commands do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer
from rich.table import Table

from seedtune import monitors, replay, report
from seedtune.cli.console import console, error_console
from seedtune.cli.progress import ProgressLines, ReplayProgress
from seedtune.errors import ConfigError, RunError, resume_command
from seedtune.export import Export, export_run
from seedtune.strategies import populations
from seedtune.trainer import Trainer

DTYPES = ("float32", "bfloat16", "float16")


def run_training(trainer: Trainer, *, resume: bool) -> None:
    """Train, watch, and say what was made; Ctrl-C leaves a run that can be resumed (exit code 130)."""
    lines = ProgressLines(console())
    trainer.callbacks = (lines,)
    try:
        with ReplayProgress(console()) as trainer.replaying:
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
    lines.say(f"next: seedtune samples {root}   seedtune export {root} -o MODEL")


def dry_run(trainer: Trainer) -> None:
    """Load everything a run needs and show what it would do."""
    from seedtune import engines

    config = trainer.config
    trainer.paths.check_unused()
    engine = engines.create(config)
    info = replay.loaded(engine)
    lines = ProgressLines(console())
    lines.describe(trainer, info)
    completions = min(config.prompts_per_generation, len(trainer.task.train)) * config.samples_per_prompt
    sizes = [(size + config.evaluate_centre) * completions for size in populations(config)]
    lines.say(
        f"{max(sizes):,} rollouts a generation{'' if min(sizes) == max(sizes) else ' at most'}, {sum(sizes):,} in all; "
        f"at most {max(sizes) * config.max_completion_length:,} new tokens a generation. Nothing was written."
    )
    engine.close()


def export_command(run: Path, wanted: tuple[Path, str | None], generation: int | None, sets: Sequence[str]) -> None:
    """Export a run's model, as a folder in a precision, and say how to load it."""
    output, dtype = wanted
    check_dtype(dtype)
    with ReplayProgress(console()) as progress:
        done = export_run(run, output, generation=generation, dtype=dtype, sets=sets, progress=progress)
    say_exported(done, output)


def check_dtype(dtype: str | None) -> None:
    """ConfigError if a model cannot be written in this precision."""
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype!r} is not one of {', '.join(DTYPES)}.")


def say_exported(done: Export, output: Path) -> None:
    """What was written, what it took, and how to load it."""
    if done.replayed:
        console().print(f"replayed {done.replayed} generations in {done.seconds:.2f} s", soft_wrap=True)
    console().print(f"wrote the model after generation {done.generation} to {output}", soft_wrap=True)
    console().print(f'load it with: AutoModelForCausalLM.from_pretrained("{output}")', soft_wrap=True)


def samples_command(run: Path, limit: int) -> None:
    """A table of held-out prompts with the answers of the first and the last evaluation."""
    replay.run_config(run)
    pairs = report.before_and_after(replay.RunPaths(run))
    if not pairs:
        raise RunError(f"{run} has no held-out answers yet. Let it finish its first evaluation.")
    first, last = pairs[0][0]["generation"], pairs[0][1]["generation"]
    console().print(f"{run}: held-out answers", soft_wrap=True)
    table = Table(show_lines=True)
    for heading in ("prompt", f"generation {first}", "reward", f"generation {last}", "reward"):
        table.add_column(heading, justify="right" if heading == "reward" else "left", overflow="fold")
    for before, after in pairs[: limit or None]:
        table.add_row(report.prompt_text(before["prompt"]), *_answer(before), *_answer(after))
    console().print(table)
    averages = [
        monitors.mean([row["reward"] for row in column if row["reward"] is not None])
        for column in zip(*pairs, strict=True)
    ]
    shown = " → ".join("–" if value is None else f"{value:.4g}" for value in averages)
    console().print(f"mean reward over all {len(pairs)} prompts: {shown}", soft_wrap=True)


def _answer(row: report.Row) -> tuple[str, str]:
    reward = "–" if row["reward"] is None else f"{row['reward']:.4g}"
    return str(row["completion"]), reward
