"""The methods that are compared, and the settings that each of them may be tuned over: the same number of short runs.

A setting of ES that is common to all is in es.py, one of GRPO in grpo.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from benchmarks.evidence.baselines import BEST_PROMPT, VOTE
from benchmarks.evidence.tasks import SMOLLM2, Task

Row = dict[str, Any]

POPULATION = 32

GIVEN_NOTHING = "seedtune"
"""Its own rules find σ and the steps: not tuned, so it has no grid."""


def _fixed(task: Task) -> dict[str, Row]:
    """σ and α = ρσ√(N/2): steps of ρ times the length of a member's perturbation, for pairs and z-scores."""
    return {
        f"σ {sigma:g}, ρ {ratio:g}": {"sigma": sigma, "alpha": ratio * sigma * math.sqrt(POPULATION / 2)}
        for sigma in task.sigmas[:2]
        for ratio in (0.15, 0.4, 1.0)
    }


def _paper(task: Task) -> dict[str, Row]:
    """Noise of full rank, members without opposites, z-scores, α = σ/2, N = 30 (arXiv 2509.24372); σ is tuned."""
    common = {"perturbation": "gaussian", "antithetic": False, "population": 30}
    low, _, high = task.sigmas
    sigmas = sorted((low / 4, low / 2, *task.sigmas, 2 * high))
    return {f"σ {sigma:g}": {"sigma": sigma, "alpha": sigma / 2, **common} for sigma in sigmas}


def _mezo(task: Task) -> dict[str, Row]:
    """Steps of two points along one direction, as long as their rewards differ (MeZO, arXiv 2305.17333)."""
    common = {"perturbation": "gaussian", "population": 2, "shaping": "none"}
    return {
        f"σ {sigma:g}, α {factor:g}σ": {"sigma": sigma, "alpha": factor * sigma, **common}
        for sigma in task.sigmas[:2]
        for factor in (1.5, 5.0, 15.0)
    }


def _grpo(task: Task) -> dict[str, Row]:
    """AdamW, TRL's default; its learning rate and the temperature are tuned."""
    rates = (1e-4, 3e-4, 1e-3) if task.models != (SMOLLM2,) else (3e-6, 1e-5, 3e-5)
    return _rates(rates, {"optim": "adamw_torch"})


def _sgd(task: Task) -> dict[str, Row]:
    """The plain gradient, which needs no optimizer's state."""
    rates = (0.03, 0.3, 3.0) if task.models != (SMOLLM2,) else (0.01, 0.1, 1.0)
    return _rates(rates, {"optim": "sgd"})


def _vote(task: Task) -> dict[str, Row]:
    """The base model's samples; their temperature is tuned."""
    return {f"T {temperature:g}": {"temperature": temperature} for temperature in (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)}


def _rates(rates: tuple[float, ...], common: Row) -> dict[str, Row]:
    return {
        f"lr {rate:g}, T {temperature:g}": {"learning_rate": rate, "temperature": temperature, **common}
        for rate in rates
        for temperature in (1.0, 0.7)
    }


GRIDS: dict[str, Callable[[Task], dict[str, Row]]] = {
    GIVEN_NOTHING: lambda task: {"nothing given": {}},
    "seedtune, σ and α tuned": _fixed,
    "the paper's ES": _paper,
    "MeZO": _mezo,
    "GRPO": _grpo,
    "GRPO, SGD": _sgd,
    VOTE: _vote,
    BEST_PROMPT: lambda task: {"chosen on training prompts": {}},
}


def is_grpo(method: str) -> bool:
    """Whether TRL runs this method."""
    return method.startswith("GRPO")


def variants(base: Row) -> dict[str, Row]:
    """Changes of one thing each, with the tuned σ and α of ``base`` and steps of the same length, or nothing given.

    A step is α/N·‖w‖ times as long as σε, with ‖w‖ = √(2N) for pairs and √N without: so α is √2 larger without pairs,
    and grows with √N.  More members have fewer generations: all have the same budget.
    """
    sigma, alpha = base["sigma"], base["alpha"]
    fixed = {
        "pairs, N 32": base,
        "without pairs": {**base, "antithetic": False, "alpha": alpha * math.sqrt(2)},
        **{
            f"N {members}": {**base, "population": members, "alpha": alpha * math.sqrt(members / POPULATION)}
            for members in (8, 16, 64)
        },
        "4 subspaces": {**base, "subspaces": 4},
        "α · √4": {**base, "alpha": 2 * alpha},
        "full rank": {**base, "perturbation": "gaussian"},
        "rank 4": {**base, "rank": 4},
        **{
            f"flipout, {shared} shared": {**base, "perturbation": "flipout", "shared_noise": shared}
            for shared in (1, 8)
        },
        "anchor λ₂ 10": {**base, "anchor_l2": 10.0},
        "ESSAM": {**base, "lookahead": {"radius": sigma / 5}},
        "ESSAM-F": {**base, "lookahead": {"radius": 100 * sigma, "probes": 10}},
    }
    adaptive: dict[str, Row] = {
        "nothing given": {},
        "nothing given, without pairs": {"antithetic": False},
        **{f"nothing given, N {members}": {"population": members} for members in (8, 16, 64)},
        "nothing given, full rank": {"perturbation": "gaussian"},
        "nothing given, flipout, 8 shared": {"perturbation": "flipout", "shared_noise": 8},
        "nothing given, 4 subspaces": {"subspaces": 4},
    }
    return {**fixed, **adaptive}
