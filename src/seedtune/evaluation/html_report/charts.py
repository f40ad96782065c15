"""The charts of a report: one run's metrics side by side, or one line per run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from seedtune.evaluation.html_report.line_chart import BandPart, Point, Series, figure
from seedtune.evaluation.html_report.markup import duration, known, number, per_cent, table, thinned
from seedtune.evaluation.html_report.run_data import RunData

ACTIVITIES = {
    "time/rollouts": "generating",
    "time/perturb": "perturbing",
    "time/score": "scoring",
    "time/update": "updating",
    "time/other": "other",
}
"""Metric → activity of a generation."""

STACKED = 200
"""Most generations in a stack of areas."""


class Diagnostic(NamedTuple):
    """A metric with a small chart of its own, what it is, and a value to include."""

    metric: str
    title: str
    about: str
    floor: float | None = None


DIAGNOSTICS = (
    Diagnostic("sigma", "σ", "size of the perturbations", 0.0),
    Diagnostic("alpha", "α", "step size", 0.0),
    Diagnostic("step_ratio", "Step ratio", "length of a step in lengths of a perturbation", 0.0),
    Diagnostic(
        "success_rate", "Success rate", "share of members that beat the unperturbed model; near ½ if σ is small"
    ),
    Diagnostic("agreement", "Agreement", "part of the differences between members that holds on other prompts", 0.0),
    Diagnostic("curvature", "Curvature", "reward lost at the distance of a member", 0.0),
    Diagnostic("update_cosine", "Cosine of updates", "of the last two; near 0 for fresh noise", 0.0),
    Diagnostic("frac_reward_zero_std", "Prompts without signal", "share on which all members tie", 0.0),
    Diagnostic("completions/mean_length", "Length", "mean tokens of a completion", 0.0),
    Diagnostic("completions/clipped_ratio", "Cut off", "share of completions at max_completion_length", 0.0),
)


def rewards(run: RunData) -> str:
    """Render rewards of members and the unperturbed model, and held-out rewards."""
    spread = [
        BandPart(point.x, point.y - width, point.y + width)
        for point, width in ((point, known(row.get("reward_std"))) for point, row in _with_rows(run, "reward"))
        if width is not None
    ]
    return figure(
        "reward",
        "Training reward",
        [
            Series("members, mean ± standard deviation", run.points("reward"), spread),
            Series("best member", run.points("reward_best")),
            # Measured before the update that the generation ends with.
            Series("unperturbed model", run.points("reward_unperturbed", shift=-1)),
        ],
        about="by generation",
    ) + held_out([run])


def _with_rows(run: RunData, metric: str) -> list[tuple[Point, Mapping[str, object]]]:
    found = {row["generation"]: row for row in run.generations}
    return [(point, found[int(point.x)]) for point in run.points(metric)]


def held_out(runs: Sequence[RunData]) -> str:
    """Render the held-out rewards of runs with their intervals."""
    lines = [
        Series(
            run.name if len(runs) > 1 else "held out, 95 % interval",
            run.points("eval_reward", rows=run.evaluations),
            _intervals(run),
            dots=True,
        )
        for run in runs
    ]
    return figure("held-out", "Held-out reward", lines, about="with 95 % bootstrap intervals over prompts")


def _intervals(run: RunData) -> list[BandPart]:
    return [
        BandPart(generation, found.low, found.high)
        for generation, found in run.intervals.items()
        if found.low is not None and found.high is not None
    ]


def each_reward(run: RunData) -> str:
    """Render every reward function's mean, and its share of the step."""
    means = {name: f"rewards/{name}/mean" for name in names(run, r"rewards/(.*)/mean")}
    shares = {name: f"rewards/{name}/step_share" for name in names(run, r"rewards/(.*)/step_share")}
    about = "how much of the step's direction each reward gave; below 0, the step went against it"
    several = len(means) > 1
    return (
        figure("functions", "Reward functions", _series(run, means), about="mean of each", floor=0.0) if several else ""
    ) + figure("shares", "Share of the step", _series(run, shares), about=about, text=per_cent, floor=0.0)


def names(run: RunData, pattern: str) -> list[str]:
    """Return the distinct names in a run's metrics, by a pattern with one group."""
    found = (re.fullmatch(pattern, name, re.DOTALL) for row in run.generations for name in row)
    return list(dict.fromkeys(match[1] for match in found if match))


def _series(run: RunData, metrics: Mapping[str, str]) -> list[Series]:
    return [Series(name, run.points(metric)) for name, metric in metrics.items()]


def distance(runs: Sequence[RunData]) -> str:
    """Render how far the weights, and the model's answers, are from the base model's."""
    drift = [
        Series(name, run.points(metric), dots=True)
        for run in runs
        for metric, name in (("drift", "measured"), ("drift_predicted", "predicted of a random walk"))
    ]
    named = [Series(run.name, run.points("drift"), dots=True) for run in runs]
    kl = [Series(run.name, run.points("kl"), dots=True) for run in runs]
    return figure(
        "drift", "Drift", drift if len(runs) == 1 else named, about="‖θ − θ₀‖, distance from the base model", floor=0.0
    ) + figure("kl", "KL", kl, about="divergence from the base model, nats per token", floor=0.0)


def speed(runs: Sequence[RunData]) -> str:
    """Render tokens and seconds."""
    return figure(
        "tokens",
        "Tokens per second",
        [Series(run.name, run.points("tokens_per_second")) for run in runs],
        about="generated, all members together",
        floor=0.0,
    )


def times(run: RunData) -> str:
    """Render where the time of each generation goes, as a stack of areas and in total."""
    activities = {metric: name for metric, name in ACTIVITIES.items() if run.total(metric) > 0}
    rows = thinned([row for row in run.generations if known(row.get("step_time")) is not None], STACKED)
    series, below = [], [0.0] * len(rows)
    for metric, name in activities.items():
        above = [low + max(0.0, known(row.get(metric)) or 0.0) for low, row in zip(below, rows, strict=True)]
        band = [BandPart(row["generation"], *edges) for row, *edges in zip(rows, below, above, strict=True)]
        own = [Point(part.x, part.high - part.low) for part in band]
        series.append(Series(name, own, band, filled=True))
        below = above
    chart = figure("seconds", "Where the time goes", series, about="seconds of a generation", text=_seconds, floor=0.0)
    whole = run.total("step_time")
    if not chart or whole <= 0:
        return chart
    totals = {name: run.total(metric) for metric, name in activities.items()}
    lines = [(name, duration(total), per_cent(total / whole)) for name, total in totals.items()]
    return chart + table(("activity", "time", "share"), lines, caption="Time of all generations", left=("activity",))


def _seconds(value: float) -> str:
    return f"{number(value)} s"


def diagnostics(runs: Sequence[RunData]) -> str:
    """Render the small charts of `DIAGNOSTICS`."""
    charts = (
        figure(
            f"d-{re.sub('[^a-z]', '-', one.metric)}",
            one.title,
            [Series(run.name, run.points(one.metric)) for run in runs],
            about=one.about,
            floor=one.floor,
        )
        for one in DIAGNOSTICS
    )
    found = "".join(charts)
    return f"<div class=grid>{found}</div>" if found else ""


def compared(runs: Sequence[RunData]) -> str:
    """Render the rewards of several runs, one line each."""
    line = partial(figure, "reward", "Training reward", about="mean of the members")
    return held_out(runs) + line([Series(run.name, run.points("reward")) for run in runs])
