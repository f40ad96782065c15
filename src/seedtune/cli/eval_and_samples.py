"""Implementation of ``seedtune eval`` and ``seedtune inspect``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from seedtune.cli.console import clock, console
from seedtune.cli.progress import ReplayProgress
from seedtune.errors import ConfigError, RunError, storage_cause
from seedtune.evaluation import report
from seedtune.evaluation.estimators import Estimate
from seedtune.evaluation.evaluate import BASE, Evaluation, evaluate, is_run, settings_of
from seedtune.evaluation.held_out import PLAIN, EvalConfig, Measures
from seedtune.run import directory, recorded_config
from seedtune.run.reward_hacking_samples import flagged_samples


@dataclass(frozen=True, slots=True)
class Options:
    """Command-line options besides the subject and the generation settings."""

    tasks: tuple[str, ...]
    generation: int | None
    config: Path | None
    json: str | None
    save: bool


def eval_config_of(samples: int | None, ks: str | None, baseline: str | None, **more: Any) -> EvalConfig:
    """Combine the options of sampling and comparison; ConfigError names an option that is not a number."""
    counts = tuple(_number("--k", part) for part in ks.split(",")) if ks else ()
    base = 0 if baseline == "base" else None if baseline is None else _number("--baseline", baseline)
    return EvalConfig(samples=max(counts, default=0) if samples is None else samples, ks=counts, baseline=base, **more)


def _number(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        example = "1,4,16" if option == "--k" else "base, or a generation such as 20"
        raise ConfigError(f"{option} {text!r} is not a number. Give {example}.") from None


def evaluate_command(what: str, eval_config: EvalConfig, options: Options, sets: Sequence[str]) -> None:
    """Evaluate, and print or write the result."""
    if options.save and not is_run(what):
        raise ConfigError(f"--save adds the result to a run, and {what!r} is not one. Use --json FILE.")
    config = settings_of(what, file=options.config, sets=sets)
    with ReplayProgress(console()) as progress:
        found = evaluate(
            what,
            on=options.tasks,
            generation=options.generation,
            eval_config=eval_config,
            config=config,
            progress=None if options.json == "-" else progress,
        )
    text = json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False, indent=2)
    if options.json == "-":
        sys.stdout.write(text + "\n")
    else:
        _print(found)
    if options.json not in (None, "-"):
        _write(Path(str(options.json)), text)
    if options.save:
        paths = directory.RunPaths(Path(what))
        directory.append_lines(paths.evaluations, [found.to_json()])
        directory.write_whole(paths.report, report.render(paths))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        cause, fix = storage_cause(error)
        raise RunError(f"cannot write {path}: {cause}. {fix}, or choose another --json.") from error


def _print(found: Evaluation) -> None:
    for task, result in enumerate(found.subjects[0].results):
        first = found.subjects[0]
        name = found.what if first.generation is None else f"{found.what}, generation {first.generation}"
        console().print(f"{name}, {result.task} held out, {result.prompts} prompts", soft_wrap=True)
        console().print(_table(found, task))
    console().print("[low, high]: 95 % bootstrap intervals over prompts", soft_wrap=True)


def _table(found: Evaluation, task: int) -> Table:
    """Build a table: one row per measure, one column per subject; also the difference to the base model, if there."""
    results = [subject.results[task] for subject in found.subjects]
    others = [index for index, subject in enumerate(found.subjects) if index and subject.name == BASE]
    table = Table()
    table.add_column("measure")
    for subject, result in zip(found.subjects, results, strict=True):
        table.add_column(_heading(subject.name, result), justify="right")
    differences = found.difference(others[0], task) if others else {}
    if others:
        table.add_column(f"first less {BASE}", justify="right")
    for name in results[0].estimates:
        cells = [shown(result.estimates.get(name)) for result in results]
        table.add_row(name, *cells, *([shown(differences.get(name))] if others else []))
    table.add_row("time", *(clock(result.seconds) for result in results))
    return table


def _heading(name: str, result: Measures) -> str:
    return name if result.put == PLAIN else name.replace("best prompt", f"best prompt ({result.put})")


def shown(estimate: Estimate | None) -> str:
    """Format an estimate with its interval."""
    if estimate is None or estimate.value is None:
        return "–"
    if estimate.low is None:
        return f"{estimate.value:.4g}"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def inspect_command(run: Path, limit: int) -> None:
    """Print a table of recorded completions with signs of reward hacking, next to the base model's."""
    recorded_config.run_config(run)
    paths = directory.RunPaths(run)
    if not directory.read_lines(paths.samples):
        raise RunError(f"{run} has no recorded answers yet. Let it finish its first evaluation.")
    found = flagged_samples(paths)
    if not found:
        console().print(f"{run}: no recorded answer looks suspicious", soft_wrap=True)
        return
    shown_of = found[: limit or None]
    console().print(f"{run}: {len(shown_of)} of {len(found)} suspicious answers, most suspicious first", soft_wrap=True)
    table = Table(show_lines=True)
    for heading in ("generation", "why", "prompt", BASE, "reward", "answer", "reward"):
        table.add_column(heading, justify="right" if heading == "reward" else "left", overflow="fold")
    for one in shown_of:
        before = ("–", "–") if one.base is None else _answer(one.base)
        where = f"{one.row['generation']} {one.row['split']}"
        table.add_row(where, "; ".join(one.reasons), report.prompt_text(one.row["prompt"]), *before, *_answer(one.row))
    console().print(table)


def _answer(row: report.Row) -> tuple[str, str]:
    return str(row["completion"]), "–" if row["reward"] is None else f"{row['reward']:.4g}"
