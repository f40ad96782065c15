"""Strategies side by side at equal rollouts (untuned.py compares σ and steps).

    python benchmarks/strategies.py [--seeds 3] [--jobs 2] [--output benchmarks/results]

Tasks on two models: ``conciseness`` on SmolLM2-135M, held-out questions; ``countdown``, 32 puzzles that a small Llama
(see countdown.py) trains on and is measured on.  A run is a process with one
thread; finished runs are kept in strategies-runs.jsonl of the output folder and not run again.  Plots need
``pip install matplotlib``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Settings = dict[str, Any]
Run = dict[str, Any]

TASKS: dict[str, Settings] = {
    "conciseness": {"sigma": 0.008, "generations": 6, "prompts_per_generation": 4, "max_completion_length": 24},
    "countdown": {"sigma": 0.01, "generations": 24, "prompts_per_generation": 32, "max_completion_length": 10},
}
"""What every run of a task has; N = 32, so about 800 rollouts with SmolLM2."""

EVALUATE = {"conciseness": 2, "countdown": 3}
"""Generations between evaluations."""

COMMON: Settings = {"population": 32, "save_steps": 0, "evaluate_unperturbed": True, "fingerprint_steps": 1000}
RATIO = 3.0
"""α/σ of the variants."""


def variants(sigma: float, generations: int) -> dict[str, Settings]:
    """Every variant with the same σ and (nearly) the same number of rollouts."""
    alpha = RATIO * sigma
    singles, fixed = {"antithetic": False}, {"alpha": alpha}
    return {
        "paper: α = σ/2": {**singles, "alpha": sigma / 2},
        "plain, α = 3σ": {**singles, **fixed},
        "pairs, α = 3σ": fixed,
        "pairs, ranks": {"alpha": alpha / 0.29, "shaping": "centered_rank"},
        "subspaces, K = 4": {**fixed, "subspaces": 4},
        "control: α√K": {"alpha": 2 * alpha},
        "noise kept for 4": {**fixed, "noise_reuse": 4},
        "look-ahead (ESSAM-F)": {
            **fixed,
            "generations": round(generations * 64 / 42),
            "lookahead": {"radius": 0.5, "probes": 10},
        },
        "α cosine 6σ to 0.6σ": {"alpha": 2 * alpha, "alpha_schedule": {"kind": "cosine", "over": generations}},
        "α auto": {},
    }


# ------------------------------------------------------------------------------ one run, in a process of its own


def one_run(task: str, settings: Settings, seed: int) -> list[tuple[int, float, float]]:
    """(rollouts so far, reward of the current model, spoilt share of the last generation's answers) of every
    evaluation.

    Spoilt: empty, or repeating.
    """
    import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported
    from seedtune import ESConfig, ESTrainer

    points: list[tuple[int, float, float]] = []
    spent, spoilt = [0], [0.0]

    class Curve:
        def on_start(self, *_: Any) -> None: ...

        def on_generation(self, metrics: dict[str, Any]) -> None:
            spent[0] += metrics["rollouts"]
            spoilt[0] = max(metrics["completions/empty_ratio"], metrics["completions/repeating_ratio"])

        def on_evaluate(self, metrics: dict[str, Any]) -> None:
            points.append((spent[0], metrics["eval_reward"], spoilt[0]))

        def on_end(self, *_: Any) -> None: ...

    with tempfile.TemporaryDirectory() as folder:
        own = {"seed": seed, "output_dir": f"{folder}/run", "eval_steps": EVALUATE[task]}
        made = {**COMMON, **TASKS[task], **own, **settings}
        if task == "conciseness":
            trainer = ESTrainer(
                args=ESConfig.create({**made, "task": "conciseness", "eval_prompts": 32}), callbacks=[Curve()]
            )
        else:
            trainer = _countdown(made, Path(folder), Curve())
        trainer.train()
        trainer.load().close()
    return points


def _countdown(settings: Settings, folder: Path, curve: Any) -> Any:
    import countdown

    from seedtune import ESConfig, ESTrainer

    countdown.train_model(folder / "model", steps=100)
    rows = countdown.puzzles(32, 1)
    config = ESConfig.create({**settings, "model": str(folder / "model")})
    return ESTrainer(
        args=config, reward_funcs=countdown.solved, train_dataset=rows, eval_dataset=rows, callbacks=[curve]
    )


# ------------------------------------------------------------------------------ all runs


def collect(tasks: Iterable[str], seeds: Iterable[int], *, jobs: int, kept: Path) -> list[Run]:
    """Every run, from the file of finished ones or made now."""
    done = {_name(run): run for run in map(json.loads, kept.read_text().splitlines())} if kept.exists() else {}
    wanted: list[Run] = []
    for seed in seeds:
        for task in tasks:
            task_settings = TASKS[task]
            for label, settings in variants(task_settings["sigma"], task_settings["generations"]).items():
                wanted.append({"task": task, "label": label, "settings": settings, "seed": seed})
    missing = [run for run in wanted if _name(run) not in done] if jobs else []

    def make(run: Run) -> None:
        run["points"] = json.loads(_process(__file__, "run", json.dumps(run)))
        done[_name(run)] = run
        with kept.open("a") as file:
            file.write(json.dumps(run) + "\n")
        print(f"{len(done)} {run['task']} | {run['label']} | seed {run['seed']}: {run['points'][-1]}", flush=True)

    with ThreadPoolExecutor(max(1, jobs)) as pool:
        list(pool.map(make, missing))
    return [{**done[_name(run)], "label": run["label"]} for run in wanted if _name(run) in done]


def _process(*arguments: str) -> str:
    """The last line that a Python process with one thread prints."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, *arguments]
    made = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if made.returncode:
        raise SystemExit(f"{arguments}: {made.stderr[-2000:]}")
    return made.stdout.splitlines()[-1]


def _name(run: Run) -> str:
    return json.dumps([run["task"], run["settings"], run["seed"]], sort_keys=True)


def mean_std(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3g} ± {spread:.2g}"


SPOILT = "empty or repeating answers at the end"


def spoilt(seeds: list[list[list[float]]]) -> str:
    """Share of the last generation's answers that are empty or repeat themselves, by seed; ? where it is not known.

    A reward on length pays for empty answers, so the two stand side by side.
    """
    return " ".join(f"{points[-1][2]:.0%}" if len(points[-1]) > 2 else "?" for points in seeds)


def grouped(runs: list[Run], task: str) -> dict[str, list[list[list[float]]]]:
    """Points of every seed by label."""
    found: dict[str, list[list[list[float]]]] = {}
    for run in runs:
        if run["task"] == task:
            found.setdefault(run["label"], []).append(run["points"])
    return found


def variants_table(runs: list[Run], task: str) -> str:
    """Reward of the current model halfway and at the end, and by seed."""
    lines = [f"| variant | rollouts | halfway | at the end | by seed | {SPOILT} |"]
    lines.append("| --- | ---: | ---: | ---: | --- | --- |")
    curves = grouped(runs, task)
    order = sorted(curves, key=lambda label: -statistics.mean(points[-1][1] for points in curves[label]))
    for label in order:
        seeds = curves[label]
        half = [min(points, key=lambda p, end=points[-1][0]: abs(p[0] - end / 2))[1] for points in seeds]
        last = [points[-1][1] for points in seeds]
        by_seed = " ".join(f"{value:.3g}" for value in last)
        ends = f"{mean_std(half)} | {mean_std(last)} | {by_seed} | {spoilt(seeds)}"
        lines.append(f"| {label} | {int(seeds[0][-1][0]):,} | {ends} |")
    base = next(iter(curves.values()))[0][0][1]
    return "\n".join([f"## {task}", "", f"Base model {base:.3g}. `{json.dumps(TASKS[task])}`", "", *lines])


def plot(runs: list[Run], tasks: list[str], path: Path) -> None:
    """Mean reward against rollouts, a line a variant, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 5), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for number, (label, seeds) in enumerate(grouped(runs, task).items()):
            xs = [p[0][0] for p in zip(*seeds, strict=True)]
            ys = [statistics.mean(q[1] for q in p) for p in zip(*seeds, strict=True)]
            axis.plot(xs, ys, linewidth=1.2, label=label, color=plt.get_cmap("tab20")(number % 20))
        axis.set_title(task)
        axis.set_xlabel("rollouts")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """All runs, or one of them."""
    if sys.argv[1:2] == ["run"]:
        run = json.loads(sys.argv[2])
        print(json.dumps(one_run(run["task"], run["settings"], run["seed"])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--jobs", type=int, default=2, help="processes at once, one thread each; 0: only the page of finished runs"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    kept = options.output / "strategies-runs.jsonl"
    seeds = range(options.first, options.first + options.seeds)
    runs = collect(options.tasks, seeds, jobs=options.jobs, kept=kept)
    tables = [variants_table(runs, task) for task in options.tasks]
    write(options.output, tables, f"--first {options.first} --seeds {options.seeds}")
    plot(runs, options.tasks, options.output / "strategies.svg")
    print("\n\n".join(tables))


def write(folder: Path, tables: list[str], seeds: str) -> None:
    """The page with its command and versions."""
    command = f"`python benchmarks/strategies.py {seeds}`, {time.strftime('%Y-%m-%d')}."
    made = f"{command} Python {platform.python_version()}, {os.cpu_count()} cores, a process with one thread a run."
    name = "strategies"
    notes = folder / f"{name}-notes.md"
    said = [notes.read_text().strip(), ""] if notes.exists() else []
    lines = [
        "# Strategies at equal rollouts",
        "",
        made,
        "",
        *said,
        f"![reward against rollouts]({name}.svg)",
        "",
        *tables,
        "",
    ]
    (folder / f"{name}.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
