"""The commands that evaluate a model, and show a run's answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

import seedtune
from seedtune.cli.console import clock, console, number, plain, say, say_json, say_table
from seedtune.cli.options import AsJson, Generation, RunFolder, Sets, bounded, path
from seedtune.cli.progress import ReplayProgress
from seedtune.errors import ConfigError, RunError, storage_cause
from seedtune.types import COUNT

if TYPE_CHECKING:
    from seedtune.evaluation.comparison import DiffPiece, Row
    from seedtune.evaluation.held_out import Measures
    from seedtune.run.directory import RunPaths

MARKS = ("red", "bold green")
"""Styles of text found only before training, and only after training."""


def evaluate(
    what: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run directory, model folder, id or built-in name.")
    ],
    task: Annotated[list[str] | None, typer.Option(help="Task, repeatable; a run's or --config's by default.")] = None,
    generation: Generation = None,
    samples: Annotated[int | None, bounded(0, COUNT, help="Sample so many answers of every prompt, too.")] = None,
    k: Annotated[str | None, typer.Option("--k", metavar="K,K,…", help="pass@k and maj@k for these k.")] = None,
    temperature: Annotated[float, bounded(0, 1000, help="Of the samples; other answers are greedy.")] = 0.7,
    limit: Annotated[int | None, bounded(1, COUNT, help="Held-out prompts; all by default.")] = None,
    kl: Annotated[bool, typer.Option("--kl", help="Measure the divergence of a run from its base model.")] = False,
    baseline: Annotated[
        str | None, typer.Option(metavar="base|G", help="Compare a run with its base model, or with a generation.")
    ] = None,
    prompt_baseline: Annotated[
        bool, typer.Option("--prompt-baseline", help="Add the base model with its best prompt and with majority votes.")
    ] = False,
    randopt: Annotated[int, bounded(0, COUNT, help="Add the vote of the best of so many random members.")] = 0,
    seed: Annotated[int, bounded(0, 2**64 - 1, help="Of the samples and the intervals.")] = 0,
    config: Annotated[
        Path | None,
        typer.Option(parser=path, help="How a model is asked: a settings file, for example RUN/config.yaml."),
    ] = None,
    to_json: Annotated[str | None, typer.Option("--json", metavar="FILE|-", help="Write the result as JSON.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Add the result to the run and its report.")] = False,
    sets: Sets = None,
) -> None:
    """Accuracy, reward and length of greedy answers on held-out prompts, with intervals; pass@k and maj@k of samples.

    A model is loaded once for all tasks.  Nothing is written unless --json or --save says so.
    """
    from seedtune.evaluation import models

    ks = tuple(_integer("--k", part) for part in k.split(",")) if k else ()
    eval_config = seedtune.EvalConfig(
        samples=max(ks, default=0) if samples is None else samples,
        temperature=temperature,
        ks=ks,
        limit=limit,
        kl=kl,
        seed=seed,
        baseline=None if baseline is None else 0 if baseline == "base" else _integer("--baseline", baseline),
        prompt_baseline=prompt_baseline,
        randopt=randopt,
    )
    file = None if to_json in (None, "-") else path(to_json)
    if save and not models.is_run(what):
        raise ConfigError(f"--save adds the result to a run, and {what!r} is not one. Use --json FILE.")
    with ReplayProgress(console()) as progress:
        found = seedtune.evaluate(
            what,
            on=task or (),
            generation=generation,
            eval_config=eval_config,
            config=models.settings_of(what, file=config, sets=sets or (), on=task or ()),
            progress=None if to_json == "-" else progress,
        )
    _hand_out(found, file, to_stdout=to_json == "-")
    if save:
        _save(found, Path(what))


def _integer(option: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        example = "1,4,16" if option == "--k" else "base, or a generation such as 20"
        raise ConfigError(f"{option} {text[:100]!r} is not a number. Give {example}.") from None


def _hand_out(found: seedtune.Evaluation, file: Path | None, *, to_stdout: bool) -> None:
    """Print the result as tables, or as JSON; also write it to ``file`` as JSON, if there is one."""
    text = json.dumps(found.to_json(), ensure_ascii=to_stdout, allow_nan=False, indent=2) + "\n"
    if to_stdout:
        sys.stdout.write(plain(text))
        return
    first = found.subjects[0]
    name = found.what if first.generation is None else f"{found.what}, generation {first.generation}"
    for task, result in enumerate(first.results):
        say(f"{name}, {result.task} held out, {result.prompts} prompts")
        _say_results(found, task)
    say("[low, high]: 95 % bootstrap intervals over prompts")
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            cause, fix = storage_cause(error)
            raise RunError(f"cannot write {file}: {cause}. {fix}, or choose another --json.") from error


def _say_results(found: seedtune.Evaluation, task: int) -> None:
    """Print a table: one row per measure, one column per subject; also the difference to the base model, if there."""
    from seedtune.evaluation.estimators import Estimate
    from seedtune.evaluation.evaluate import BASE

    results = [subject.results[task] for subject in found.subjects]
    base = next((index for index, subject in enumerate(found.subjects) if index and subject.name == BASE), None)
    headings = [_heading(subject.name, result) for subject, result in zip(found.subjects, results, strict=True)]
    columns = [result.estimates for result in results]
    if base is not None:
        headings.append(f"first less {BASE}")
        columns.append(found.difference(base, task))
    rows = [(name, *(column.get(name, Estimate(None)).text() for column in columns)) for name in columns[0]]
    times = [*(clock(result.seconds) for result in results), *([] if base is None else [""])]
    say_table(("measure", *headings), [*rows, ("time", *times)], right=headings)


def _heading(name: str, result: Measures) -> str:
    from seedtune.evaluation.held_out import PLAIN

    return name if result.wording == PLAIN else name.replace("best prompt", f"best prompt ({result.wording})")


def _save(found: seedtune.Evaluation, run: Path) -> None:
    from seedtune.evaluation import report
    from seedtune.run import directory

    paths = directory.RunPaths(run)
    directory.append_lines(paths.evaluations, [found.to_json()])
    directory.write_whole(paths.report, report.render(paths).encode())


def samples(
    run: RunFolder,
    limit: Annotated[int, bounded(0, COUNT, help="Prompts to show; 0 shows all.")] = 12,
    to_json: AsJson = False,
) -> None:
    """Held-out answers before and after training, side by side."""
    from seedtune.evaluation import comparison
    from seedtune.evaluation.html_report.answers import prompt_text
    from seedtune.run import directory, recorded_config

    recorded_config.run_config(run)
    paths = directory.RunPaths(run)
    pairs = comparison.pairs(paths)
    if not pairs:
        raise _no_answers(paths, "held-out")
    if to_json:
        changes = comparison.compare(paths)
        shown = [{"before": before, "after": after} for before, after in pairs[: limit or None]]
        say_json({"run": str(run), "answers": shown, "changes": changes, "alarms": comparison.last_alarms(paths)})
        return
    say(f"{run}: {len(pairs[: limit or None])} of {len(pairs)} held-out answers")
    generations = (f"generation {row['generation']}" for row in pairs[0])
    rows = []
    for before, after in pairs[: limit or None]:
        texts = comparison.marked(str(before["completion"]), str(after["completion"]))
        old, new = (coloured(pieces, style) for pieces, style in zip(texts, MARKS, strict=True))
        prompt = prompt_text(before["prompt"])
        rows.append((prompt, old, number(before["reward"]), new, number(after["reward"])))
    headings = ("prompt", next(generations), "reward", next(generations), "reward")
    say_table(headings, rows, right=("reward",), texts=True)
    say_changes(paths)


def _no_answers(paths: RunPaths, kind: str) -> RunError:
    """Return the error for a run without answers: they are still to come, or it holds nothing out."""
    from seedtune.evaluation.comparison import holds_nothing_out

    if holds_nothing_out(paths):
        return RunError(
            f"{paths.root} has no {kind} answers, because it holds no prompts out. Start a new run with eval_dataset, "
            "or with more rows or a larger eval_size."
        )
    return RunError(f"{paths.root} has no {kind} answers yet. Let it finish its first evaluation.")


def coloured(pieces: list[DiffPiece], style: str) -> Text:
    """Return the whole text, with its differing pieces in ``style``."""
    return Text.assemble(*((piece, style if differs else "") for piece, differs in pieces))


def say_changes(paths: RunPaths) -> None:
    """Print the first and the last held-out evaluation with intervals, and the last generation's alarms."""
    from seedtune.evaluation import comparison

    found = comparison.compare(paths)
    if found is None:
        return
    columns = (*(f"generation {generation}" for generation in found.generations), "difference")
    rows = [(change.measure, *change.cells) for change in found.changes]
    say_table((f"{found.prompts} held-out prompts", *columns), rows, right=columns)
    say("means; [low, high]: 95 % bootstrap intervals, differences prompt by prompt")
    alarms = comparison.last_alarms(paths)
    say(f"alarms in the last generation: {len(alarms) or 'none'}")
    for alarm in alarms:
        say(f"  ! {alarm}")


def inspect(
    run: RunFolder,
    limit: Annotated[int, bounded(0, COUNT, help="Answers to show; 0 shows all.")] = 12,
) -> None:
    """Recorded answers that look as if the reward had been gamed, most suspicious first, and why."""
    from seedtune.evaluation.evaluate import BASE
    from seedtune.evaluation.html_report.answers import prompt_text
    from seedtune.run import directory, recorded_config
    from seedtune.run.reward_hacking.samples import flagged_samples

    recorded_config.run_config(run)
    paths = directory.RunPaths(run)
    if not directory.read_lines(paths.samples):
        raise _no_answers(paths, "recorded")
    found = flagged_samples(paths)
    if not found:
        say(f"{run}: no recorded answer looks suspicious")
        return
    shown = found[: limit or None]
    say(f"{run}: {len(shown)} of {len(found)} suspicious answers, most suspicious first")
    rows = [
        (
            f"{sample.row['generation']} {sample.row['split']}",
            "; ".join(sample.reasons),
            prompt_text(sample.row["prompt"]),
            *_answer(sample.base),
            *_answer(sample.row),
        )
        for sample in shown
    ]
    headings = ("generation", "why", "prompt", BASE, "reward", "answer", "reward")
    say_table(headings, rows, right=("reward",), texts=True)


def _answer(row: Row | None) -> tuple[str, str]:
    return ("–", "–") if row is None else (str(row["completion"]), number(row["reward"]))
