"""ES on a model that solves some countdown puzzles: held-out greedy accuracy before and after.

    python benchmarks/accuracy.py [--families llama gpt2 qwen2] [--seeds 3] [--jobs 2] [--output benchmarks/results]

Each family's 1M model is trained once (see countdown.py); then a run for every seed trains it by ES, without any
solution, on puzzles of the half that is not held out, ``prompts_per_generation`` of them a generation.  α is not
given: it is found while training.  A run is a process with one thread, so two of them share two cores.
Plots need ``pip install matplotlib``.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__)
SETTINGS: dict[str, Any] = {
    "sigma": 0.006,
    "population": 32,
    "generations": 36,
    "prompts_per_generation": 128,
    "max_completion_length": 10,
    "eval_steps": 6,
    "save_steps": 0,
    "fingerprint_steps": 1000,
    "transformers": {"max_rows": 4096, "max_batch_tokens": 1048576},
}
TRAIN, TEST = 4096, 512


def one_run(model: str, seed: int, changed: dict[str, Any]) -> dict[str, Any]:
    """Held-out accuracy by rollouts and seconds of generations."""
    import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported

    sys.path.insert(0, str(HERE.parent))
    import countdown
    from quality import Curve

    from seedtune import ESConfig, ESTrainer

    curve = Curve()
    with tempfile.TemporaryDirectory() as folder:
        own = {"model": model, "seed": seed, "output_dir": f"{folder}/run"}
        data = {
            "train_dataset": countdown.puzzles(TRAIN, 100),
            "eval_dataset": countdown.puzzles(TEST, 101, test=True),
        }
        trainer = ESTrainer(
            args=ESConfig.create({**SETTINGS, **own, **changed}),
            reward_funcs=countdown.solved,
            **data,
            callbacks=[curve],
        )
        trainer.train()
        trainer.load().close()
    return {"seed": seed, "points": curve.points}


def process(*arguments: str) -> str:
    """The last line of another process of this script or of countdown.py, with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    made = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env, check=False)
    if made.returncode:
        raise SystemExit(f"{arguments}: {made.stderr[-2000:]}")
    return made.stdout.splitlines()[-1]


def family_runs(family: str, folder: Path, seeds: int, jobs: int) -> tuple[str, list[dict[str, Any]]]:
    """The model's own line, and every seed's run."""
    model = str(folder / family)
    said = process(str(HERE.with_name("countdown.py")), "--family", family, "--output", model)
    print(said, flush=True)

    def make(seed: int) -> dict[str, Any]:
        run: dict[str, Any] = json.loads(process(str(HERE), "run", json.dumps([model, seed, {}])))
        print(f"{family} seed {seed}: {run['points']}", flush=True)
        return run

    with ThreadPoolExecutor(jobs) as pool:
        return said, list(pool.map(make, range(seeds)))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Start, end, gain and time of every run."""
    lines = ["| model | seed | before | after | points gained | rollouts | seconds | seconds to + 10 points |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for family, made in runs.items():
        for run in made:
            points = run["points"]
            first, last = points[0][2], points[-1][2]
            ten = next((f"{seconds:.0f}" for _, seconds, value in points if value >= first + 0.1), "not")
            cells = f"{first:.1%} | {last:.1%} | {100 * (last - first):.1f} | {points[-1][0]:,} | {points[-1][1]:.0f}"
            lines.append(f"| {family} | {run['seed']} | {cells} | {ten} |")
        gains = [100 * (run["points"][-1][2] - run["points"][0][2]) for run in made]
        spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
        lines.append(f"| {family} | all | | | {statistics.mean(gains):.1f} ± {spread:.1f} | | | |")
    return "\n".join(lines)


def plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Held-out accuracy against rollouts, a line a seed."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6))
    for number, (family, made) in enumerate(runs.items()):
        for index, run in enumerate(made):
            xs, ys = [p[0] for p in run["points"]], [p[2] for p in run["points"]]
            label = family if index == 0 else None
            axis.plot(xs, ys, marker=".", linewidth=1, color=plt.get_cmap("tab10")(number), label=label)
    axis.set_xlabel("rollouts")
    axis.set_ylabel("held-out greedy accuracy")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Every family, every seed."""
    if sys.argv[1:2] == ["run"]:
        print(json.dumps(one_run(*json.loads(sys.argv[2]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["llama", "gpt2", "qwen2"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--output", type=Path, help="folder for accuracy.md and accuracy.svg")
    options = parser.parse_args()
    said: dict[str, str] = {}
    runs: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for family in options.families:
            said[family], runs[family] = family_runs(family, Path(folder), options.seeds, options.jobs)
    text = table(runs)
    print(text)
    if options.output:
        command = f"`python benchmarks/accuracy.py --seeds {options.seeds}`, {time.strftime('%Y-%m-%d')}."
        made = f"{command} Python {platform.python_version()}, {os.cpu_count()} cores, a process with one thread a run."
        models = [f"* {line}" for line in said.values()]
        setup = f"`{json.dumps(SETTINGS)}`, {TRAIN:,} puzzles to train on, {TEST} held out; α auto."
        image = "![accuracy against rollouts](accuracy.svg)"
        lines = ["# Accuracy on countdown, small models", "", made, "", *models, "", setup, "", text, "", image, ""]
        (options.output / "accuracy.md").write_text("\n".join(lines))
        plot(runs, options.output / "accuracy.svg")


if __name__ == "__main__":
    main()
