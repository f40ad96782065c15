"""The recorded data of one run that its report shows, read from its folder once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seedtune.config.config import Config
from seedtune.config.foreign_data import conform, parse_json, parse_yaml
from seedtune.config.yaml_file import dotted
from seedtune.evaluation.estimators import Estimate, bootstrap
from seedtune.evaluation.html_report.line_chart import Point
from seedtune.evaluation.html_report.markup import known
from seedtune.run import directory, metrics
from seedtune.run.directory import RunPaths

Row = Mapping[str, Any]

HEADER = 1 << 20
"""Most bytes of the ledger that are read for its first line."""


@dataclass(frozen=True, slots=True)
class RunData:
    """One run: a row per generation and per evaluation, its answers, settings and versions.

    ``intervals`` are the held-out rewards by generation, ``last`` those of the last evaluation by prompt.
    """

    name: str
    generations: Sequence[Row]
    evaluations: Sequence[Row]
    intervals: Mapping[int, Estimate]
    last: Mapping[str, float]
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]

    def points(self, metric: str, *, shift: int = 0, rows: Sequence[Row] | None = None) -> list[Point]:
        """Return a metric's known values by generation, moved by ``shift`` generations."""
        found = self.generations if rows is None else rows
        values = [(row["generation"] + shift, known(row.get(metric))) for row in found]
        return [Point(x, y) for x, y in values if y is not None]

    def total(self, metric: str) -> float:
        """Sum a metric over all generations, without unknown values."""
        return sum(point.y for point in self.points(metric))


def load(paths: RunPaths) -> RunData:
    """Read a run; whatever is damaged or of another form is left out."""
    rows = directory.read_lines(paths.metrics)
    held_out = [row for row in directory.read_lines(paths.samples) if row["split"] == "test"]
    end = max((row["generation"] for row in held_out), default=0)
    return RunData(
        paths.root.resolve().name,
        _by_generation(row for row in rows if "reward" in row),
        _by_generation(row for row in rows if "eval_reward" in row),
        _intervals(held_out),
        _last([row for row in held_out if row["generation"] == end]),
        dotted(settings_in(paths.config)),
        dotted(_header(paths.ledger)),
    )


def _by_generation(rows: Any) -> list[Row]:
    """Keep the newest row of every generation, in order."""
    found = {row["generation"]: row for row in rows}
    return [found[generation] for generation in sorted(found)]


def _last(rows: Sequence[Row]) -> dict[str, float]:
    """Map the prompts of an evaluation, by id and text, to their mean rewards."""
    rewards: dict[str, list[float]] = {}
    for row in rows:
        value = known(row["reward"])
        rewards.setdefault(f"{row['prompt_id']} {row['prompt']}", []).extend([] if value is None else [value])
    return {prompt: float(np.mean(values)) for prompt, values in rewards.items() if values}


def _intervals(rows: Sequence[Row]) -> dict[int, Estimate]:
    """Estimate the mean held-out reward of every evaluation, over prompts."""
    groups: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        value = known(row["reward"])
        groups.setdefault((row["generation"], row["prompt_id"]), []).append(np.nan if value is None else value)
    times, prompts = (sorted({key[place] for key in groups}) for place in (0, 1))
    if not groups:
        return {}
    means = [[metrics.mean(groups.get((time, prompt), ())) for time in times] for prompt in prompts]
    return dict(zip(times, bootstrap(np.array(means, dtype=np.float64)), strict=True))


def settings_in(path: Path) -> Mapping[str, Any]:
    """Read the settings of a run; {} if they are damaged."""
    with suppress(ValueError, OSError):
        return conform(parse_yaml(path.read_text(encoding="utf-8")), dict[str, Any])
    return {}


def _header(path: Path) -> Mapping[str, Any]:
    with suppress(ValueError, OSError), path.open("rb") as file:
        header = conform(parse_json(file.readline(HEADER)), dict[str, Any])
        return {name: value for name, value in header.items() if name not in ("config", "sources", "check")}
    return {}


def defaults() -> dict[str, Any]:
    """Return the default settings, flattened as a run's own are."""
    return dotted(Config().model_dump(mode="json"))


def difference(first: RunData, other: RunData) -> Estimate | None:
    """Estimate the other run's last held-out reward less the first's, prompt by prompt; None without common prompts."""
    shared = sorted(first.last.keys() & other.last.keys())
    if not shared:
        return None
    return bootstrap(np.array([[other.last[prompt] - first.last[prompt]] for prompt in shared]))[0]
