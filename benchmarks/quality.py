"""Gaussian against low-rank perturbation at equal rollouts: reward against rollouts and against seconds.

    python benchmarks/quality.py [--task conciseness|countdown] [--seeds 3] [--output benchmarks/results]

Both modes get the same σ, α, population, prompts and seeds; only the shape of the noise differs.  ``conciseness``
trains SmolLM2-135M (bfloat16) to be brief and measures on held-out questions; ``countdown`` trains a 1M Llama (see
countdown.py) to solve 64 puzzles and measures on the same (on others it gained nothing within 100,000 rollouts).
Seconds are those of generations, evaluations left out.  The reward of ``conciseness`` sees length alone, so the share
of empty held-out answers stands beside it.  Plots need ``pip install matplotlib``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported

# isort: split
import countdown
import torch

from seedtune import ESConfig, ESTrainer

MODES = ("lowrank", "gaussian")
Point = tuple[int, float, float, float]
"""(rollouts so far, seconds so far, reward of the current model, share of its held-out answers that are empty)."""


class Curve:
    """A callback that collects one run's points."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._rollouts, self._seconds = 0, 0.0

    def on_start(self, *_: Any) -> None:
        """Nothing yet."""

    def on_generation(self, metrics: dict[str, Any]) -> None:
        """Add up what the generation cost."""
        self._rollouts += metrics["rollouts"]
        self._seconds += metrics["step_time"]

    def on_evaluate(self, metrics: dict[str, Any]) -> None:
        """A point of the curve."""
        empty = metrics["eval_completions/empty_ratio"]
        self.points.append((self._rollouts, self._seconds, metrics["eval_reward"], empty))

    def on_end(self, *_: Any) -> None:
        """Nothing left to do."""


@dataclass(frozen=True, slots=True)
class Study:
    """A task: settings, and how a trainer for them is made."""

    settings: dict[str, Any]
    trainer: Callable[[ESConfig, Curve], ESTrainer]
    title: str


def conciseness() -> Study:
    """SmolLM2-135M learns to be brief."""
    settings = {"task": "conciseness", "sigma": 0.006, "alpha": 0.018, "population": 32, "prompts_per_generation": 4}
    more = {"generations": 6, "max_completion_length": 32, "eval_steps": 2, "eval_prompts": 16, "save_steps": 0}
    return Study({**settings, **more}, lambda config, curve: ESTrainer(args=config, callbacks=[curve]), "conciseness")


def puzzles(folder: Path) -> Study:
    """A small Llama learns to solve 64 puzzles; its accuracy on these, which is not a claim about others."""
    countdown.train_model(folder, steps=100)
    settings = {"model": str(folder), "sigma": 0.01, "alpha": 0.02, "population": 64, "prompts_per_generation": 64}
    more = {
        "generations": 24,
        "max_completion_length": 10,
        "eval_steps": 4,
        "save_steps": 0,
        "evaluate_unperturbed": False,
    }

    def trainer(config: ESConfig, curve: Curve) -> ESTrainer:
        rows = countdown.puzzles(64, 1)
        return ESTrainer(
            args=config, reward_funcs=countdown.solved, train_dataset=rows, eval_dataset=rows, callbacks=[curve]
        )

    return Study({**settings, **more}, trainer, "countdown (accuracy)")


def run(study: Study, mode: str, seed: int) -> list[Point]:
    """One training run."""
    curve = Curve()
    with tempfile.TemporaryDirectory() as folder:
        own = {"perturbation": mode, "seed": seed, "output_dir": f"{folder}/run"}
        trainer = study.trainer(ESConfig.create({**study.settings, **own}), curve)
        trainer.train()
        trainer.load().close()
    points = [(r, round(s, 1), round(v, 3), f"{empty:.0%} empty") for r, s, v, empty in curve.points]
    print(f"{study.title} {mode} seed {seed}: {points}", flush=True)
    return curve.points


def table(study: Study, curves: dict[str, list[list[Point]]]) -> str:
    """Reward of the current model, mean ± standard deviation over seeds, by rollouts."""
    lines = ["| rollouts | " + " | ".join(f"{mode} | empty answers | seconds" for mode in MODES) + " |"]
    lines.append("| ---: |" + " ---: |" * (3 * len(MODES)))
    for index, (rollouts, *_) in enumerate(curves[MODES[0]][0]):
        cells = []
        for mode in MODES:
            rewards = [points[index][2] for points in curves[mode]]
            spread = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
            seconds = statistics.mean(points[index][1] for points in curves[mode])
            empty = statistics.mean(points[index][3] for points in curves[mode])
            cells.append(f"{statistics.mean(rewards):.3g} ± {spread:.2g} | {empty:.0%} | {seconds:.0f}")
        lines.append(f"| {rollouts:,} | " + " | ".join(cells) + " |")
    last = {mode: " ".join(f"{points[-1][2]:.3g}" for points in curves[mode]) for mode in MODES}
    ends = "; ".join(f"{mode} {values}" for mode, values in last.items())
    shown = {k: v for k, v in study.settings.items() if k != "model"}
    return "\n".join(
        [f"## {study.title}", "", f"`{json.dumps(shown)}`", "", *lines, "", f"At the end, by seed: {ends}."]
    )


def plot(study: Study, curves: dict[str, list[list[Point]]], path: Path) -> None:
    """Reward against rollouts and against seconds, a thin line a seed, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, column, label in zip(axes, (0, 1), ("rollouts", "seconds of training"), strict=True):
        for mode, colour in zip(MODES, ("tab:blue", "tab:orange"), strict=True):
            for index, points in enumerate(curves[mode]):
                xs, ys = [p[column] for p in points], [p[2] for p in points]
                axis.plot(xs, ys, color=colour, marker=".", linewidth=1, label=mode if index == 0 else None)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"reward, {study.title}")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Every study, every mode, every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("conciseness", "countdown"), help="one of the two; both by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for a table (quality-TASK.md) and a plot (.svg) each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        makers = {"countdown": lambda: puzzles(Path(folder) / "model"), "conciseness": conciseness}
        for name in [options.task] if options.task else list(makers):
            study = makers[name]()
            # Modes and seeds take turns, so that a slow hour of the machine meets both.
            runs = {(mode, seed): run(study, mode, seed) for seed in range(options.seeds) for mode in MODES}
            curves = {mode: [runs[mode, seed] for seed in range(options.seeds)] for mode in MODES}
            text = table(study, curves)
            print(text, flush=True)
            if options.output:
                write(options.output, name, text, options.seeds)
                plot(study, curves, options.output / f"quality-{name}.svg")


def write(folder: Path, name: str, text: str, seeds: int) -> None:
    """The table with its command and versions."""
    command = f"`python benchmarks/quality.py --task {name} --seeds {seeds}`, {time.strftime('%Y-%m-%d')}."
    made = f"{command} Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores."
    image = f"![reward against rollouts and seconds](quality-{name}.svg)"
    lines = ["# Gaussian and low-rank noise at equal rollouts", "", made, "", text, "", image, ""]
    (folder / f"quality-{name}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
