"""The tables of docs/evidence.md, from finished cells alone."""

from __future__ import annotations

import statistics as numbers
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.evidence import baselines
from benchmarks.evidence.cells import POINTS
from benchmarks.evidence.statistics import Paired, holm, paired
from benchmarks.evidence.study import Store
from benchmarks.evidence.tasks import CHAINS

Row = dict[str, Any]
Runs = dict[int, Row]
"""A method's cells by seed."""


def runs_of(store: Store, task: str, model: str, method: str, **more: Any) -> Runs:
    """A method's results by seed."""
    rows = store.of(**{"purpose": "result", "task": task, "model": model, "method": method, **more})
    return {row["seed"]: row for row in sorted(rows, key=lambda row: row["seed"])}


def at(row: Row, part: float, value: str = "reward") -> float:
    """A measured value of the point nearest to a part of the rollouts of the last one."""
    end = row["points"][-1]["rollouts"]
    found: float = min(row["points"], key=lambda p: abs(p["rollouts"] - part * end))["measured"][value]
    return found


def gain(row: Row, part: float = 1.0) -> float:
    """Reward above the base model's."""
    return at(row, part) - at(row, 0.0)


def compare(
    ours: Runs, theirs: Runs, value: Callable[[Row], float], other: Callable[[Row], float] | None = None
) -> Paired:
    """Paired differences over the seeds that both have."""
    seeds = sorted(set(ours) & set(theirs))
    return paired([value(ours[s]) for s in seeds], [(other or value)(theirs[s]) for s in seeds])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown; the first column is text."""
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def shown(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {numbers.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{numbers.mean(values):.3f}{spread}"


def interval(found: Paired, p: float | None = None) -> str:
    """A difference with its interval, and its corrected p-value."""
    said = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return said if p is None else f"{said}, p < 0.001" if p < 5e-4 else f"{said}, p {p:.3f}"


def efficiency(store: Store, task: str, model: str, methods: Sequence[str], reference: str) -> str:
    """Reward against rollouts, and every method's distance from a reference at its end, corrected together."""
    theirs, rows, apart = runs_of(store, task, model, reference), [], []
    for method in methods:
        ours = runs_of(store, task, model, method)
        if not ours:
            continue
        cells = [shown([at(run, part) for run in ours.values()]) for part in (0.0, *POINTS)]
        if baselines.is_baseline(method):
            cells[1:-1] = ["–"] * (len(POINTS) - 1)
        if not baselines.is_baseline(method):
            cells.append(f"{numbers.mean(at(run, 1.0, 'empty') for run in ours.values()):.1%}")
        else:
            cells.append("–")
        chosen = next(iter(ours.values()))["label"]
        rows.append([f"{method} ({chosen})", *cells])
        apart.append(None if method == reference else compare(ours, theirs, gain))
    corrected = iter(holm([found.p for found in apart if found is not None]))
    for row, found in zip(rows, apart, strict=True):
        row.append("–" if found is None else interval(found, next(corrected)))
    heads = [
        "method (tuned to)",
        "start",
        *(f"{part:.1%}".replace(".0", "") for part in POINTS),
        "empty answers at the end",
        f"minus {reference}",
    ]
    return table(heads, rows)


def _start(runs: Runs) -> str:
    """The base model's reward, which all seeds share."""
    return f"{at(next(iter(runs.values())), 0.0):.3f}"


def equal_compute(store: Store, tasks: Sequence[tuple[str, str]], ours: str, theirs: str) -> str:
    """Gains at equal rollouts and at equal FLOPs: a rollout of GRPO costs four of ES."""
    found = [
        (task, model, runs_of(store, task, model, ours), runs_of(store, task, model, theirs)) for task, model in tasks
    ]
    found = [row for row in found if row[2] and row[3]]
    equal = [compare(a, b, gain) for _, _, a, b in found]
    flops = [compare(a, b, gain, lambda row: gain(row, 0.25)) for _, _, a, b in found]
    rows = [
        [f"{task}, {model}", _start(a), *(shown([gain(run) for run in runs.values()]) for runs in (a, b)), one, other]
        for (task, model, a, b), one, other in zip(
            found,
            [interval(f, p) for f, p in zip(equal, holm([f.p for f in equal]), strict=True)],
            [interval(f, p) for f, p in zip(flops, holm([f.p for f in flops]), strict=True)],
            strict=True,
        )
    ]
    return table(["task, model", "start", ours, theirs, "difference at equal rollouts", "at equal FLOPs"], rows)


def variants(store: Store, task: str, model: str) -> str:
    """Variants of one thing each, and their distance from the first of their kind, corrected together."""
    rows, apart = [], []
    by_label: dict[str, Runs] = {}
    for run in store.of(purpose="variant", task=task, model=model):
        by_label.setdefault(run["label"], {})[run["seed"]] = run
    for label, ours in by_label.items():
        theirs = by_label["nothing given" if label.startswith("nothing given") else "pairs, N 32"]
        ends = [[value(run) for run in ours.values()] for value in (gain, lambda run: gain(run, 0.5))]
        rows.append([label, *(shown(end) for end in reversed(ends))])
        apart.append(None if ours is theirs else compare(ours, theirs, gain))
    corrected = iter(holm([found.p for found in apart if found is not None]))
    for row, found in zip(rows, apart, strict=True):
        row.append("–" if found is None else interval(found, next(corrected)))
    return table(["variant", "gain after half", "gain at the end", "difference"], rows)


def sigmas(store: Store, tasks: Sequence[tuple[str, str]], found: str, swept: str) -> str:
    """σ that a run found by itself, and what a sweep of short runs chose: does one σ suit several models?"""
    rows = []
    for task, model in tasks:
        own = [run["sigma"] for run in runs_of(store, task, model, found).values()]
        short = store.of(purpose="tune", task=task, model=model, method=swept)
        if own and short:
            ends = {run["label"]: run["points"][-1]["measured"]["reward"] for run in short}
            best, worst = max(ends, key=ends.__getitem__), min(ends, key=ends.__getitem__)
            chosen = f"{best} ({ends[best]:.3f}); worst {worst} ({ends[worst]:.3f})"
            rows.append([f"{task}, {model}", f"{min(own):.3g} to {max(own):.3g}", chosen])
    return table(["task, model", "σ found", "best and worst of the sweep, reward on training prompts"], rows)


def horizon(store: Store, methods: Sequence[str], reference: str) -> str:
    """Shares of right ends by the number of chained answers."""
    rows, apart = [], []
    for length in (1, 2, 4, 8):
        by_method = {method: runs_of(store, f"chain of {length}", CHAINS, method) for method in methods}
        if not all(by_method.values()):
            continue
        start = at(next(iter(by_method[reference].values())), 0.0)
        ends = [shown([at(run, 1.0) for run in by_method[method].values()]) for method in methods]
        rows.append([str(length), f"{start:.3f}", *ends])
        apart.append(compare(by_method[methods[0]], by_method[reference], gain))
    for row, found, p in zip(rows, apart, holm([found.p for found in apart]), strict=True):
        row.append(interval(found, p))
    return table(["answers in a chain", "start", *methods, f"{methods[0]} minus {reference}"], rows)


def kept(store: Store, task: str, model: str, methods: Sequence[str]) -> str:
    """What a reward does not pay for, beside it, at the start and at points on the way."""
    rows = []
    for method in methods:
        runs = runs_of(store, task, model, method)
        for part in (0.0, 0.25, 0.5, 1.0) if runs else ():
            cells = [shown([at(run, part, name) for run in runs.values()]) for name in ("reward", "right", "empty")]
            letters = numbers.mean(at(run, part, "characters") for run in runs.values())
            rows.append([f"{method}, {part:.0%} of the budget", *cells, f"{letters:.0f}"])
    return table(["model", "reward", "right answers", "empty answers", "characters"], rows)


def stability(store: Store, tasks: Sequence[tuple[str, str]], methods: Sequence[str]) -> str:
    """Standard deviation over seeds of the last model's reward, and runs that end below their start."""
    rows = []
    for task, model in tasks:
        cells = []
        for method in methods:
            ends = [gain(run) for run in runs_of(store, task, model, method).values()]
            below = sum(end < 0 for end in ends)
            cells.append(f"{numbers.stdev(ends):.3f} ({below} of {len(ends)})" if len(ends) > 1 else "–")
        if any(cell != "–" for cell in cells):
            rows.append([f"{task}, {model}", *cells])
    return table(["standard deviation (runs below their start)", *methods], rows)


def costs(store: Store) -> str:
    """What a thousand rollouts cost on the same idle machine, one process with all cores."""
    rows = []
    for run in store.of(purpose="timing"):
        end = run["points"][-1]
        thousand = end["rollouts"] / 1000
        cells = [f"{end['seconds'] / thousand:.1f}", f"{end['flops'] / thousand / 1e9:.0f}", f"{run['peak_mb']:.0f}"]
        rows.append([f"{run['task']}, {run['model']}", run["method"], *cells])
    return table(["task, model", "method", "seconds", "GFLOP", "peak memory, MB"], rows)


def repeats(store: Store) -> str:
    """A run of seed 0 once more, with another number of threads: the last model's reward, and whether weights agree."""
    rows = []
    for again in store.of(purpose="timing"):
        first = runs_of(store, again["task"], again["model"], again["method"])[0]
        ends = [f"{at(run, 1.0):.4f}" for run in (first, again)]
        marks = [run.get("fingerprint") for run in (first, again)]
        same = "not recorded" if None in marks else "equal" if marks[0] == marks[1] else "different"
        rows.append([f"{again['task']}, {again['model']}", again["method"], *ends, same])
    return table(["task, model", "method", "reward", "again", "bits of the weights"], rows)
