"""The command ``seedtune init``: asks on a terminal what its options do not say, checks, and writes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seedtune.cli.console import error_console, read_line, say
from seedtune.cli.options import path
from seedtune.errors import ConfigError, RunError, SeedtuneError, storage_cause

if TYPE_CHECKING:
    from seedtune.cli.init.trial import NewRun

FILE, MODEL = "seedtune.yaml", "smollm2-135m"
REWARDS = "rewards.py"
"""Name of the file with the reward to fill in, beside the settings."""


def init(
    model: Annotated[str | None, typer.Option(help=f"Hugging Face id, folder or built-in name; {MODEL}.")] = None,
    train_dataset: Annotated[
        str | None,
        typer.Option(metavar="FILE|ID", help="Your data: .jsonl, .json, .csv, .parquet, or a Hugging Face id."),
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with the prompts; found by its usual names.")
    ] = None,
    reward: Annotated[
        str | None,
        typer.Option(metavar="FILE.py:FUNCTION", help=f"Your reward; without one a {REWARDS} to fill in is written."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", parser=path, metavar="FILE", help=f"Settings file; {FILE}.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a commented settings file for your own data and reward.

    On a terminal it asks what the options do not say.  Data and reward are loaded and tried on two rows before
    anything is written; 'seedtune train FILE' takes the file as it is.  Files that are there stay unless --force.
    """
    from seedtune.cli.init import trial

    asks = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if train_dataset is None and not asks:
        raise ConfigError("--train-dataset is missing. Give it, or run 'seedtune init' on a terminal, where it asks.")
    if asks and model is None:
        model = ask("Model", MODEL, trial.check_model)
    if train_dataset is None:
        train_dataset = ask("Training data, a file or a Hugging Face id", None, trial.columns_of)
    trial.check_model(model or MODEL)
    columns = trial.columns_of(train_dataset)
    if asks and prompt_column is None and trial.usual(trial.PROMPTS, columns) is None:
        title = f"Column with the prompts ({', '.join(columns)})"
        prompt_column = ask(title, None, lambda name: trial.prompt_column_of(columns, name))
    prompts = trial.prompt_column_of(columns, prompt_column)
    data = trial.NewRun(model or MODEL, train_dataset, prompts, columns)
    if asks and reward is None:
        title = f"Reward, FILE.py:FUNCTION (empty: write a {REWARDS} to fill in)"
        reward = ask(title, "", lambda name: name and trial.try_out(data, name))
    if asks and output is None:
        output = path(ask("Settings file", FILE, lambda name: _check_free(path(name), force=force)))
    _write(data, reward or None, output or Path(FILE), force=force)


def ask(question: str, default: str | None, check: Callable[[str], object]) -> str:
    """Ask until an answer passes ``check``, which raises a SeedtuneError that is shown; Ctrl-D ends the command."""
    while True:
        try:
            given = read_line(f"{question}{f' [{default}]' if default else ''}: ").strip()
        except EOFError:
            say("")
            raise typer.Exit(130) from None
        answer = given or default
        if answer is None:
            continue
        try:
            check(answer)
        except SeedtuneError as error:
            error_console().print("error: " + " ".join(str(error).splitlines()))
        else:
            return answer


def _write(data: NewRun, reward: str | None, output: Path, *, force: bool) -> None:
    """Try the data and the reward, write the settings and, without a reward, one to fill in; say how to go on."""
    from seedtune.cli.init import trial, written_files

    _check_free(output, force=force)
    template = output.parent / REWARDS
    if reward is None:
        _check_free(template, force=force, fix="Name your function with --reward rewards.py:NAME, or give --force")
    tried = trial.try_out(data, reward) if reward is not None else trial.try_template(data, written_files.rewards(data))
    files = {} if reward is not None else {template: written_files.rewards(data)}
    files[output] = written_files.settings(data, reward or f"{template}:{trial.FUNCTION}", tried, output)
    for file, text in files.items():
        _write_file(file, text)
    for line in tried.lines:
        say(line)
    say(f"wrote {' and '.join(map(str, files))}")
    if reward is None:
        say(f"next: write your reward in {template}, then: seedtune train {shlex.quote(str(output))}")
    else:
        say(f"next: seedtune train {shlex.quote(str(output))}   (--dry-run checks the model, too)")


def _check_free(file: Path, *, force: bool, fix: str = "Give another --output, or --force to replace it") -> None:
    """Raise ConfigError if a file is there, unless it may be replaced."""
    if file.is_dir():
        raise ConfigError(f"{str(file)!r} is a folder. Give the name of a file, such as {FILE}.")
    if file.exists() and not force:
        raise ConfigError(f"{str(file)!r} is there already. {fix}.")


def _write_file(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        cause, fix = storage_cause(error)
        raise RunError(f"cannot write {file}: {cause}. {fix}, or choose another --output.") from error
