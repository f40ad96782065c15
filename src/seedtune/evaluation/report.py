"""Report of runs: one self-contained HTML page without scripts, for one run or several compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from typing import Any

from seedtune.evaluation import comparison
from seedtune.evaluation.estimators import Estimate
from seedtune.evaluation.html_report import alarm_explanations, charts
from seedtune.evaluation.html_report.answers import answers
from seedtune.evaluation.html_report.markup import (
    details,
    duration,
    escaped,
    known,
    number,
    section,
    table,
    thinned,
)
from seedtune.evaluation.html_report.run_data import RunData, difference, load
from seedtune.evaluation.html_report.run_settings import settings, shown
from seedtune.run import directory
from seedtune.run.directory import RunPaths
from seedtune.types import __version__

Row = Mapping[str, Any]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""What a browser lets the page do: show itself, and send no request."""

ROWS = 1000
"""Most rows of the tables of generations and evaluations."""

GENERATION_COLUMNS = {
    "generation": "generation",
    "reward": "reward",
    "± std": "reward_std",
    "best": "reward_best",
    "unperturbed": "reward_unperturbed",
    "length": "completions/mean_length",
    "tokens/s": "tokens_per_second",
    "seconds": "step_time",
}
"""Heading → metric of the table of generations."""

EVALUATED = (
    "_reward",
    "accuracy",
    "/reward",
    "mean_length",
    "/length",
    "clipped_ratio",
    "repeating_ratio",
    "empty_ratio",
)
"""Ends of the names of metrics in the table of evaluations."""

LINKS = {
    "rewards": "Rewards",
    "changes": "Before and after",
    "answers": "Answers",
    "alarms": "Alarms",
    "step": "Step and distance",
    "speed": "Speed",
    "settings": "Configuration",
}
"""Key → name of the sections in the list of links."""


def render(*runs: RunPaths) -> str:
    """Render the page of one run, or of several compared, in the order given."""
    held = [load(paths) for paths in runs]
    names = Counter(run.name for run in held)
    held = [replace(run, name=f"{run.name} ({i})") if names[run.name] > 1 else run for i, run in enumerate(held, 1)]
    return page(held, sections_of(held[0], runs[0]) if len(held) == 1 else _several(held))


def page(runs: Sequence[RunData], sections: Sequence[str], *, head: str = "", status: str = "") -> str:
    """Wrap sections as a whole page; ``head`` replaces the policy that forbids scripts and requests."""
    title = ", ".join(run.name for run in runs)
    policy = head or f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
    style = resources.files("seedtune.evaluation.html_report").joinpath("stylesheet.css").read_text(encoding="utf-8")
    body = "".join(sections)
    links = "".join(
        f"<li><a href=#{key}>{name}</a></li>" for key, name in LINKS.items() if f"<section id={key} " in body
    )
    return (
        f"<!doctype html><html lang=en><head><meta charset=utf-8>{policy}"
        '<meta name=viewport content="width=device-width,initial-scale=1"><link rel=icon href="data:,">'
        f"<title>seedtune: {escaped(title)}</title><style>{style}</style></head><body>"
        f"<a class=skip href=#main>Skip to the content</a><header>{status}<h1>{escaped(title)}</h1>"
        f"<nav aria-label=Sections><ul>{links}</ul></nav></header><main id=main>{body}</main>"
        f"<footer><p>Written by seedtune {__version__}. The page holds all it shows, and loads nothing.</p></footer>"
        "</body></html>"
    )  # fmt: skip


def sections_of(run: RunData, paths: RunPaths) -> list[str]:
    """Render the sections of one run's page."""
    return [
        _headline(run),
        _facts(run),
        section("rewards", "Rewards", charts.rewards(run), charts.each_reward(run), _generations(run)),
        _changes(comparison.compare(paths)),
        _held_out(run.evaluations),
        *(_evaluation(row) for row in directory.read_lines(paths.evaluations)),
        answers(comparison.pairs(paths)),
        section("alarms", "Alarms", alarm_explanations.explained({run.name: _alarmed(run)})),
        *_measured([run]),
        settings([run]),
    ]


def _several(runs: Sequence[RunData]) -> list[str]:
    alarmed = {run.name: _alarmed(run) for run in runs}
    return [
        section("changes", "Runs compared", _summary(runs)),
        section("rewards", "Rewards", charts.compared(runs)),
        section("alarms", "Alarms", alarm_explanations.explained(alarmed)),
        *_measured(runs),
        settings(runs),
    ]


def _measured(runs: Sequence[RunData]) -> list[str]:
    times = charts.times(runs[0]) if len(runs) == 1 else ""
    return [
        section("step", "Step and distance", charts.distance(runs), charts.diagnostics(runs)),
        section("speed", "Speed", charts.speed(runs), times),
    ]


def _alarmed(run: RunData) -> list[Row]:
    return sorted((*run.generations, *run.evaluations), key=lambda row: row["generation"])


def _headline(run: RunData) -> str:
    if not run.evaluations:
        return "<p>No held-out evaluation.</p>"
    first, last = run.evaluations[0], run.evaluations[-1]
    text = " → ".join(_with_interval(run, row) for row in ([first] if first is last else [first, last]))
    what = f"held-out reward with its 95 % interval, generation {first['generation']} → {last['generation']}"
    return f"<p class=big>{escaped(text)}</p><p class=soft>{what}</p>"


def _with_interval(run: RunData, row: Row) -> str:
    found = run.intervals.get(row["generation"], Estimate(None))
    return Estimate(known(row["eval_reward"]), found.low, found.high).text(number)


def _facts(run: RunData) -> str:
    tokens, seconds = run.total("num_tokens"), run.total("step_time")
    facts = {
        **{name: shown(run.settings[name]) for name in ("model", "task", "population") if name in run.settings},
        "generations": f"{max((row['generation'] for row in run.generations), default=0):,}",
        "tokens": number(tokens),
        "time": duration(seconds),
        "generations with alarms": f"{alarm_explanations.count(run.generations):,}",
    }
    items = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in facts.items())
    return f"<dl class=facts>{items}</dl>"


def _summary(runs: Sequence[RunData]) -> str:
    """Render a row per run; differences to the first run's last evaluation where prompts are the same."""
    caption = "Held-out rewards with 95 % bootstrap intervals; the difference is taken prompt by prompt"
    return table(SUMMED, (_summed(runs[0], run) for run in runs), caption=caption, left=("run",))


SUMMED = (
    "run",
    "generations",
    "first held out",
    "last held out",
    "less the first run",
    "tokens",
    "time",
    "with alarms",
)
"""Columns of `_summed`; the last counts generations."""


def _summed(first: RunData, run: RunData) -> tuple[str, ...]:
    ends = [_with_interval(run, row) for row in (*run.evaluations[:1], *run.evaluations[-1:])] or ["–", "–"]
    apart = None if run is first else difference(first, run)
    return (
        run.name,
        f"{max((row['generation'] for row in run.generations), default=0):,}",
        *ends,
        "–" if apart is None else apart.text(lambda value: f"{value:+.4g}"),
        number(run.total("num_tokens")),
        duration(run.total("step_time")),
        f"{alarm_explanations.count(run.generations):,}",
    )


def _rows(metrics: Iterable[Row], names: Collection[str]) -> list[list[str]]:
    return [[number(row.get(name)) for name in names] for row in metrics]


def _generations(run: RunData) -> str:
    rows = _rows(thinned(run.generations, ROWS), GENERATION_COLUMNS.values())
    return details("All generations", table(list(GENERATION_COLUMNS), rows, caption="Generations") if rows else "")


def _changes(found: comparison.Comparison | None) -> str:
    """Render the changes by training, one measure per row, with paired differences."""
    if found is None:
        return ""
    headings = ("measure", *(f"generation {generation}" for generation in found.generations), "difference")
    caption = f"{found.prompts} held-out prompts; 95 % bootstrap intervals, differences prompt by prompt"
    rows = [(change.measure, *change.cells) for change in found.changes]
    return section("changes", "Before and after", table(headings, rows, caption=caption, left=("measure",)))


def _held_out(evaluations: Sequence[Row]) -> str:
    """Render every evaluation during training, with the other evaluated tasks."""
    found = (name for row in evaluations for name in row if name.startswith("eval_") and name.endswith(EVALUATED))
    names = list(dict.fromkeys(("generation", *found)))
    headings = [name.removeprefix("eval_") for name in names]
    rows = _rows(thinned(evaluations, ROWS), names)
    return details("All evaluations while training", table(headings, rows, caption="Evaluations") if rows else "")


def _evaluation(row: Row) -> str:
    """Render a ``seedtune eval --save``: one table per task, one row per measure, one column per subject."""
    return "".join(
        _compared(row, place) for place in range(min(len(subject["results"]) for subject in row["subjects"]))
    )


def _compared(row: Row, place: int) -> str:
    results = [subject["results"][place] for subject in row["subjects"]]
    heads = [
        f"{subject['name']} ({result['wording']})" if result["wording"] != "as it is" else subject["name"]
        for subject, result in zip(row["subjects"], results, strict=True)
    ]
    rows = [
        (name, *(Estimate(**result["measures"].get(name, {"value": None})).text(number) for result in results))
        for name in results[0]["measures"]
    ]
    caption = f"{results[0]['task']}: {results[0]['prompts']} held-out prompts, 95 % intervals"
    return f"<h2>Evaluation</h2>{table(('measure', *heads), rows, caption=caption, left=('measure',))}"
