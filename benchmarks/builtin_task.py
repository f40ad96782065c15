"""SmolLM2-135M on a built-in task besides conciseness: held-out reward before and after, by seed.

    python benchmarks/builtin_task.py [--task instruction_format] [--seeds 3] [--jobs 2] [--output benchmarks/results]

α is not given: it is found while training.  A run is a process with one thread, so two of them share two cores.
Plots need ``pip install matplotlib``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accuracy import process

HERE = Path(__file__)
SETTINGS: dict[str, Any] = {
    "sigma": 0.008,
    "population": 32,
    "generations": 10,
    "prompts_per_generation": 6,
    "max_completion_length": 32,
    "eval_steps": 5,
    "eval_prompts": 64,
    "save_steps": 0,
}


Points = list[tuple[int, float, float, float]]
"""(rollouts, seconds of generations, held-out reward, share of empty held-out answers) of every evaluation."""


def one_run(task: str, seed: int) -> Points:
    """One training run."""
    from quality import Curve

    import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported
    from seedtune import ESConfig, ESTrainer

    curve = Curve()
    with tempfile.TemporaryDirectory() as folder:
        config = ESConfig.create({**SETTINGS, "task": task, "seed": seed, "output_dir": f"{folder}/run"})
        trainer = ESTrainer(args=config, callbacks=[curve])
        trainer.train()
        trainer.load().close()
    return curve.points


def table(runs: list[Points]) -> str:
    """A row an evaluation, a column a seed."""
    names = [f"seed {seed}" for seed in range(len(runs))]
    lines = [f"| rollouts | {' | '.join(names)} | mean ± std | empty answers |"]
    lines.append("| ---: |" + " ---: |" * (len(runs) + 2))
    for points in zip(*runs, strict=True):
        values = [reward for _, _, reward, _ in points]
        empty = statistics.mean(share for *_, share in points)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = " | ".join(f"{value:.3f}" for value in values)
        lines.append(f"| {points[0][0]:,} | {cells} | {statistics.mean(values):.3f} ± {spread:.3f} | {empty:.0%} |")
    return "\n".join(lines)


def plot(task: str, runs: list[Points], path: Path) -> None:
    """Held-out reward against rollouts, a line a seed."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6))
    for seed, points in enumerate(runs):
        axis.plot([p[0] for p in points], [p[2] for p in points], marker=".", label=f"seed {seed}")
    axis.set_xlabel("rollouts")
    axis.set_ylabel(f"held-out reward, {task}")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Every seed."""
    if sys.argv[1:2] == ["run"]:
        print(json.dumps(one_run(sys.argv[2], int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="instruction_format")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--output", type=Path, help="folder for builtin-TASK.md and its plot")
    options = parser.parse_args()

    def make(seed: int) -> list[tuple[int, float, float]]:
        points: Points = json.loads(process(str(HERE), "run", options.task, str(seed)))
        print(f"seed {seed}: {points}", flush=True)
        return points

    with ThreadPoolExecutor(options.jobs) as pool:
        runs = list(pool.map(make, range(options.seeds)))
    text = table(runs)
    print(text)
    if options.output:
        command = f"`python benchmarks/builtin_task.py --task {options.task} --seeds {options.seeds}`"
        made = f"{command}, {time.strftime('%Y-%m-%d')}. Python {platform.python_version()}, {os.cpu_count()} cores."
        setup = f"SmolLM2-135M, {SETTINGS['eval_prompts']} held-out prompts. `{json.dumps(SETTINGS)}`"
        name = f"builtin-{options.task}"
        lines = [f"# SmolLM2 on {options.task}", "", made, "", setup, "", text, "", f"![reward]({name}.svg)", ""]
        (options.output / f"{name}.md").write_text("\n".join(lines))
        plot(options.task, runs, options.output / f"{name}.svg")


if __name__ == "__main__":
    main()
