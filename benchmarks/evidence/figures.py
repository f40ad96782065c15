"""The figures of docs/evidence.md as SVG, from finished cells alone."""

from __future__ import annotations

import statistics as numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import tables
from benchmarks.evidence.study import Store


def efficiency(store: Store, tasks: Sequence[tuple[str, str]], methods: Sequence[str], path: Path) -> None:
    """Held-out reward against rollouts and against FLOPs: the mean over seeds, a line a method."""
    figure, axes = _axes(2, len(tasks))
    for column, (task, model) in enumerate(tasks):
        for number, method in enumerate(methods):
            runs = list(tables.runs_of(store, task, model, method).values())
            points = list(zip(*(run["points"] for run in runs), strict=False))
            ys = [numbers.mean(p["measured"]["reward"] for p in point) for point in points]
            for row, cost in enumerate(("rollouts", "flops")):
                xs = [numbers.mean(p[cost] for p in point) for point in points]
                if xs and max(xs):
                    axes[row][column].plot(xs, ys, marker=".", label=method, color=f"C{number}")
                axes[row][column].set_xlabel({"rollouts": "rollouts", "flops": "FLOPs"}[cost])
        axes[0][column].set_title(f"{task}, {model}")
    axes[0][0].legend(fontsize=7)
    _save(figure, path)


def front(store: Store, task: str, model: str, methods: Sequence[str], path: Path) -> None:
    """What a reward on length does to the rest: right answers and divergence against the reward, a line a run."""
    figure, axes = _axes(1, 2)
    for number, method in enumerate(methods):
        for place, run in enumerate(tables.runs_of(store, task, model, method).values()):
            for axis, name in zip(axes[0], ("right", "kl"), strict=True):
                found = [p["measured"] for p in run["points"]]
                label = method if place == 0 else None
                xs, ys = [m["reward"] for m in found], [m.get(name, 0.0) for m in found]
                axis.plot(xs, ys, marker=".", label=label, color=f"C{number}", alpha=0.7)
    axes[0][0].set_ylabel("share of right answers")
    axes[0][1].set_ylabel("KL from the base model, nats per token")
    for axis in axes[0]:
        axis.set_xlabel("reward (length)")
    axes[0][0].legend(fontsize=7)
    _save(figure, path)


def _axes(rows: int, columns: int) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "seedtune"
    from matplotlib import pyplot as plt

    return plt.subplots(rows, columns, figsize=(4.5 * columns, 3.2 * rows), squeeze=False)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
