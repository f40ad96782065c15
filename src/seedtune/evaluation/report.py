"""Report of a run: one self-contained HTML page, with its curve and its completions before and after training."""

from __future__ import annotations

import html
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seedtune.evaluation import comparison
from seedtune.evaluation.estimators import Estimate
from seedtune.run import directory
from seedtune.run.directory import RunPaths

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.35rem .5rem;
text-align:left;vertical-align:top}th{font-weight:600}.n{text-align:right;white-space:nowrap}.big{font-size:2rem;font-weight:600}
svg{width:100%;height:auto}code{background:#f3f3f3;padding:0 .2rem}"""

Row = Mapping[str, Any]

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


def prompt_text(prompt: Any) -> str:
    """Return a prompt as a string: its text, or the last user message."""
    if isinstance(prompt, str):
        return prompt
    users = [message["content"] for message in prompt if message.get("role") == "user"]
    return str(users[-1] if users else prompt[-1]["content"])


def render(paths: RunPaths) -> str:
    """Render the page for a run directory."""
    metrics = directory.read_lines(paths.metrics)
    generations = list({row["generation"]: row for row in metrics if "reward" in row}.values())
    evaluations = list({row["generation"]: row for row in metrics if "eval_reward" in row}.values())
    body = [
        f"<h1>{html.escape(paths.root.name)}</h1>",
        _headline(evaluations),
        _chart(generations, evaluations),
        "<h2>Generations</h2>",
        _table(list(GENERATION_COLUMNS), _rows(generations, GENERATION_COLUMNS.values())),
        _changes(comparison.compare(paths)),
        _held_out(evaluations),
        *(_evaluation(row) for row in directory.read_lines(paths.evaluations)),
        _samples(comparison.pairs(paths)),
        f"<h2>Configuration</h2><pre>{html.escape(_text(paths.config))}</pre>",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>seedtune: {html.escape(paths.root.name)}</title><style>{_STYLE}</style>"
        f"{''.join(body)}</html>"
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: Collection[str] = ()) -> str:
    """Render a table of plain texts; the columns named in ``left`` hold texts, the others numbers."""
    opening = ["" if heading in left else " class=n" for heading in headings]
    lines = [
        "".join(f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(opening, cells, strict=True))
        for tag, cells in (("th", headings), *(("td", row) for row in rows))
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _rows(metrics: Iterable[Row], names: Collection[str]) -> list[list[str]]:
    return [[_number(row.get(name)) for name in names] for row in metrics]


def _headline(evaluations: Sequence[Row]) -> str:
    if not evaluations:
        return "<p>No held-out evaluation.</p>"
    first, last = evaluations[0], evaluations[-1]
    return (
        f"<p class=big>{_number(first['eval_reward'])} → {_number(last['eval_reward'])}</p>"
        f"<p>held-out reward, generation {first['generation']} → {last['generation']}</p>"
    )


def _chart(generations: Sequence[Row], evaluations: Sequence[Row]) -> str:
    """Plot the rewards of members (mean), unperturbed model and held-out prompts against generations."""
    lines = {
        "members": ("#8aa", [(row["generation"], row["reward"]) for row in generations]),
        "unperturbed": ("#06c", [(row["generation"] - 1, row.get("reward_unperturbed")) for row in generations]),
        "held out": ("#c30", [(row["generation"], row["eval_reward"]) for row in evaluations]),
    }
    known = [(x, y) for _, points in lines.values() for x, y in points if y is not None]
    if len(known) < 2:
        return ""
    xs, ys = [x for x, _ in known], [y for _, y in known]
    place = _scale(min(xs), max(xs), min(ys), max(ys))
    drawn = [_polyline(colour, [place(x, y) for x, y in points if y is not None]) for colour, points in lines.values()]
    legend = "".join(
        f"<text x={60 + 110 * i} y=16 fill='{colour}'>{name}</text>"
        for i, (name, (colour, _)) in enumerate(lines.items())
    )
    axes = f"<text x=0 y=36>{_number(max(ys))}</text><text x=0 y=290>{_number(min(ys))}</text>"
    foot = f"<text x=60 y=316>generation {min(xs)}</text><text x=760 y=316 text-anchor=end>{max(xs)}</text>"
    return f"<svg viewBox='0 0 780 324' font-size=13>{legend}{axes}{foot}{''.join(drawn)}</svg>"


def _scale(left: float, right: float, low: float, high: float) -> Any:
    width, height = max(right - left, 1e-9), max(high - low, 1e-9)
    return lambda x, y: (60 + 700 * (x - left) / width, 295 - 270 * (y - low) / height)


def _polyline(colour: str, points: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f"<circle cx={x:.1f} cy={y:.1f} r=3 fill='{colour}'/>" for x, y in points)
    return f"<polyline points='{path}' fill=none stroke='{colour}' stroke-width=2 />{dots}"


def _changes(found: comparison.Comparison | None) -> str:
    """Render the changes by training, one measure per row, with paired differences."""
    if found is None:
        return ""
    headings = ("measure", *(f"generation {generation}" for generation in found.generations), "difference")
    table = _table(headings, [(change.measure, *change.cells) for change in found.changes], left=("measure",))
    caption = f"{found.prompts} held-out prompts; 95 % bootstrap intervals, differences prompt by prompt"
    return f"<h2>Before and after</h2><p>{caption}</p>{table}"


def _held_out(evaluations: Sequence[Row]) -> str:
    """Render every evaluation during training, with the other evaluated tasks."""
    found = (name for row in evaluations for name in row if name.startswith("eval_") and name.endswith(EVALUATED))
    names = list(dict.fromkeys(("generation", *found)))
    table = _table([name.removeprefix("eval_") for name in names], _rows(evaluations, names))
    return f"<h2>Evaluations while training</h2>{table}" if evaluations else ""


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
        (name, *(Estimate(**result["measures"].get(name, {"value": None})).text(_number) for result in results))
        for name in results[0]["measures"]
    ]
    caption = f"{html.escape(results[0]['task'])}: {results[0]['prompts']} held-out prompts"
    return f"<h2>Evaluation</h2><p>{caption}, 95 % intervals</p>{_table(('measure', *heads), rows, left=('measure',))}"


def _samples(pairs: Sequence[tuple[Row, Row]]) -> str:
    rows = [
        (
            prompt_text(before["prompt"]),
            *(text for row in (before, after) for text in (row["completion"], _number(row["reward"]))),
        )
        for before, after in pairs
    ]
    table = _table(("prompt", "before", "reward", "after", "reward"), rows, left=("prompt", "before", "after"))
    return f"<h2>Held-out answers before and after</h2>{table}" if rows else ""


def _number(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
