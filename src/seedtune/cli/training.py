"""``seedtune train`` and ``seedtune resume``."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

import seedtune
from seedtune.cli.console import console, error_console, say
from seedtune.cli.options import RunFolder, Sets, bounded, path
from seedtune.cli.progress import ProgressLines, ReplayProgress
from seedtune.errors import resume_command
from seedtune.types import STEPS


def train(
    config: Annotated[
        Path | None, typer.Argument(parser=path, metavar="[CONFIG.yaml]", help="Settings; see examples/.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face id, folder or built-in name.")] = None,
    train_dataset: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Your data: .jsonl, .json, .csv, .parquet, or a Hugging Face id."),
    ] = None,
    eval_dataset: Annotated[
        str | None, typer.Option(metavar="FILE|ID", help="Held-out data; a part of the training data by default.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py:FUNCTION", help="Your reward, or module.function, or {path: …, adapter: …}; repeatable."
        ),
    ] = None,
    sets: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, show the plan, train nothing.")] = False,
) -> None:
    """Fine-tune a model.

    The run directory (output_dir) then holds the ledger, metrics.jsonl, samples.jsonl, snapshots and
    report.html.
    A run that was stopped, killed or crashed goes on with: seedtune resume RUN

    Without a file of settings:
    seedtune train --model smollm2-135m --train-dataset data.jsonl --reward rewards.py:my_reward --set generations=20
    """
    from seedtune.cli.warming import compile_beside
    from seedtune.config.yaml_file import override, read_settings

    options = {"model": model, "train_dataset": train_dataset, "eval_dataset": eval_dataset}
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if reward:
        given["reward_funcs"] = [parse_reward(text) for text in reward]
    settings = seedtune.ESConfig.create(override({**(read_settings(config) if config else {}), **given}, sets or ()))
    compile_beside(settings)
    trainer = seedtune.ESTrainer(args=settings)
    if dry_run:
        _dry_run(trainer)
    else:
        _run(trainer, resume=False)


def resume(
    run: RunFolder,
    generations: Annotated[int | None, bounded(1, STEPS, help="Train to this many generations in all.")] = None,
    sets: Sets = None,
) -> None:
    """Go on with a run after the last complete generation, bit for bit as if it had never stopped."""
    from seedtune.cli.warming import compile_beside
    from seedtune.config.yaml_file import override
    from seedtune.run import recorded_config

    recorded = recorded_config.trusted(run, sets or (), resume_command(run))
    config = seedtune.ESConfig.create(override(recorded.model_dump(), sets or ()))
    if generations is not None:
        config = config.replace(generations=generations)
    compile_beside(config)
    _run(seedtune.ESTrainer(args=config), resume=True)


def parse_reward(text: str) -> Any:
    """Parse a reward of the command line: plain text, or a mapping like ``{path: rewards.py:score, adapter: verl}``."""
    from seedtune.config.yaml_file import parse_value

    return parse_value(text) if text.lstrip().startswith("{") else text


def _run(trainer: seedtune.ESTrainer, *, resume: bool) -> None:
    """Train with progress lines, then print the results; after Ctrl-C the run can be resumed (exit code 130)."""
    lines = ProgressLines(console())
    trainer.callbacks = (lines,)
    try:
        with ReplayProgress(console()) as trainer.session.replaying:
            trainer.train(resume_from_checkpoint=resume)
    except KeyboardInterrupt:
        lines.bar.stop()
        _say_interrupted(trainer)
        raise typer.Exit(130) from None
    finally:
        lines.bar.stop()
        trainer.release()
    _say_done(trainer)


def _say_interrupted(trainer: seedtune.ESTrainer) -> None:
    paths = trainer.paths
    if not paths.config.exists():
        error_console().print("stopped before the run began; nothing was written.")
        return
    error_console().print(
        f"stopped after generation {trainer.generation}; nothing is lost. Continue with: {resume_command(paths.root)}"
    )


def _say_done(trainer: seedtune.ESTrainer) -> None:
    from seedtune.cli.eval_and_samples import say_changes

    root = shlex.quote(str(trainer.paths.root))
    say(f"done: {trainer.generation} generations. Report: {trainer.paths.report}")
    say_changes(trainer.paths)
    size = trainer.paths.ledger.stat().st_size
    say(
        f"the fine-tune is {trainer.paths.ledger}, {size:,} bytes: seedtune verify {root} replays it bit for bit, "
        f"seedtune pack {root} -o FILE ships it"
    )
    samples = f"seedtune samples {root}   " if trainer.task.test else ""
    say(f"next: {samples}seedtune export {root} -o MODEL")


def _dry_run(trainer: seedtune.ESTrainer) -> None:
    """Load everything a run needs and print its size."""
    from seedtune.run import replay
    from seedtune.strategies import populations

    config = trainer.config
    trainer.paths.check_unused()
    engine, info = replay.load_base(config)
    with closing(engine):
        ProgressLines(console()).describe(trainer, info)
    completions = min(config.prompts_per_generation, len(trainer.task.train)) * config.samples_per_prompt
    sizes = {(size + config.evaluate_unperturbed) * completions: count for size, count in populations(config).items()}
    in_all = sum(size * count for size, count in sizes.items())
    say(
        f"{max(sizes):,} rollouts a generation{'' if min(sizes) == max(sizes) else ' at most'}, {in_all:,} in all; "
        f"at most {max(sizes) * config.max_completion_length:,} new tokens a generation. Nothing was written."
    )
