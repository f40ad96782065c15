"""The adaptive step on synthetic tasks whose answer is known: rollouts to a target over those of the best fixed step.

    python benchmarks/step_model.py [--runs 400] [--output benchmarks/results]

Real runs of a few generations scatter by a half from seed to seed, so constants cannot be told apart by them.  Here a
run is a reward and its observations, drawn as they were measured in fixed-step runs of step-size.md (seeds 3 to 13): a
step of ρ gains slope·a·ρ·(1 ± 0.4) − κρ² spreads, a falls as the reward nears its top, members see a with an error of
0.37 and the curvature with one of 0.7.  The rule is the library's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from strategies import reached

from seedtune.strategies.base import Situation
from seedtune.strategies.step_estimates import PredictedGain, RunningAverages, realized_fraction
from seedtune.strategies.step_size import Adaptive

N = 32
SLOPE, LENGTH = 3.2, 5.44
"""Spreads that a step of one member's length should gain, and ‖w‖, of 16 pairs with z-scores."""

FIXED = (1.5, 3.0, 6.0)
"""α/σ of the sweep."""

Curve = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Landscape:
    """A task in spreads of its members' rewards."""

    generations: int
    top: float
    """What there is to gain."""
    falls: float
    """The part of the first reliability that is gone at the top."""
    reliability: float
    """a of the first generation."""
    bend: float
    """κ of the update's direction."""
    curvature: float
    """That of members' directions, which is what the current model shows."""
    hidden: float
    """How much less two prompts have in common than a."""
    prompts: float
    """Standard error of a generation's mean reward over its prompts."""
    share: float
    """Share of the training prompts in a generation."""


TASKS = {
    "conciseness": Landscape(8, 8.5, 0.5, 0.27, 0.07, 0.0, 0.08, 1.3, 0.125),
    "sentence": Landscape(8, 2.7, 1.0, 0.28, 0.38, 0.05, 0.17, 0.6, 0.125),
    "puzzles": Landscape(24, 6.6, 1.0, 0.30, 0.40, 0.1, 0.12, 2.0, 0.016),
    "countdown, all prompts": Landscape(24, 3.0, 1.0, 0.28, 0.90, 1.0, 0.33, 0.0, 1.0),
}

Step = Callable[[dict[str, float]], float]
"""ρ of a generation, from its observation."""


def fixed(ratio: float) -> Callable[[], Step]:
    """α = ratio·σ: ρ = α‖w‖/(Nσ)."""
    return lambda: lambda observation: ratio * observation["length"] / N


def adaptive(start: float | None = None) -> Callable[[], Step]:
    """The library's rule, as `EvolutionStrategy` calls it."""

    def run() -> Step:
        rule, averages, prediction = Adaptive(start=start), RunningAverages(), PredictedGain()
        state, mean, predicted = rule.init(), averages.init(), prediction.init()

        def step(observation: dict[str, float]) -> float:
            nonlocal mean, state, predicted
            mean = averages.update(mean, observation, realized_fraction(predicted, observation, 1.0))
            now = Situation(1.0, N, observation, mean)
            alpha, state = rule.update(state, now)
            predicted = prediction.update(predicted, now, alpha)
            return alpha * observation["length"] / N

        return step

    return run


def climb(task: Landscape, make: Callable[[], Step], rng: np.random.Generator) -> Curve:
    """The reward before every generation, and at the end."""
    step, reward, curve = make(), 0.0, [0.0]
    for _ in range(task.generations):
        left = task.reliability * max(-0.3, 1.0 - task.falls * reward / task.top)
        slope = SLOPE * (1.0 + 0.12 * rng.normal())
        step_ratio = step(observation_of(task, reward, slope, left, rng))
        reward += slope * left * (1.0 + 0.4 * rng.normal()) * step_ratio - task.bend * step_ratio**2
        reward -= 0.5 * max(0.0, step_ratio - 1.5) ** 2
        curve.append(reward)
    return np.array(curve)


def observation_of(
    task: Landscape, reward: float, slope: float, left: float, rng: np.random.Generator
) -> dict[str, float]:
    """What members say, with errors as measured."""
    seen = left - task.hidden * max(0.0, left) / task.reliability
    return {
        "reward": reward - task.curvature + math.hypot(0.14, task.prompts) * rng.normal(),
        "reward_error": math.hypot(0.18, task.prompts),
        "spread": 1.0,
        "length": slope * LENGTH / SLOPE,
        "slope": slope,
        "power": 0.65,
        "shared": 0.65 * (seen + 0.37 * rng.normal()),
        "shared_error": 0.65 * 0.33,
        "share": task.share,
        "curvature": task.curvature + 0.7 * rng.normal(),
        "curvature_error": 0.7,
    }


def ratio(curve: Curve, sweep: list[Curve]) -> float:
    """Rollouts to 80 % of the best fixed end, over those of the fixed step that is there first."""
    target = 0.8 * max(float(other[-1]) for other in sweep)
    ours, *others = (reached(list(enumerate(one.tolist())), target) for one in (curve, *sweep))
    found: float = ours / min(others)
    return found


def mean_of(task: Landscape, make: Callable[[], Step], runs: int, rng: np.random.Generator) -> Curve:
    """The mean curve of so many runs."""
    curves: Curve = np.mean([climb(task, make, rng) for _ in range(runs)], axis=0)
    return curves


def row(name: str, task: Landscape, runs: int) -> str:
    """A task's line: of mean curves, and how often three seeds would say more than 1.5."""
    rng = np.random.default_rng(0)
    sweep = [mean_of(task, fixed(ratio_), runs, rng) for ratio_ in FIXED]
    ours = mean_of(task, adaptive(), runs, rng)
    low, high = (ratio(mean_of(task, adaptive(start), runs, rng), sweep) for start in (0.5, 30.0))
    missed = 0
    for _ in range(runs):
        three = [mean_of(task, fixed(ratio_), 3, rng) for ratio_ in FIXED]
        missed += ratio(mean_of(task, adaptive(), 3, rng), three) > 1.5
    ends = " ".join(f"{curve[-1]:.1f}" for curve in sweep)
    ratios = " | ".join(f"{found:.2f}" for found in (ratio(ours, sweep), low, high))
    return f"| {name} | {ends} | {ours[-1]:.1f} | {ratios} | {missed / runs:.0%} |"


def main() -> None:
    """The table, printed and written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    lines = [
        "# The adaptive step where the answer is known",
        "",
        f"`python benchmarks/step_model.py --runs {options.runs}`, {time.strftime('%Y-%m-%d')}.",
        "",
        "Synthetic tasks, see the script; ends in spreads of the members' rewards. Last: how often three seeds of all",
        "would find more than 1.5, or no arrival, by chance.",
        "",
        "| task | fixed ends, α = 1.5σ 3σ 6σ | adaptive | rollouts over best fixed | from σ/2 | from 30σ | chance |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(row(name, task, options.runs) for name, task in TASKS.items()),
        "",
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "step-model.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
