"""Observations averaged over generations, in units of each generation's reward spread.

What a step gained against what its members had predicted: how much of their slope holds, as the next ones see it.

The members of a generation predict that a step of ρ lengths gains gain − cost = slope·ρ − κρ² on their own prompts.
The next generation's mean reward tells, as exactly as two means over members and prompts can: with
e² = e_t² + e_{t+1}²,

    realized fraction = (R̄_{t+1} − R̄_t + cost)/gain,   1/precision = (e² + e_κ²ρ⁴)/gain² + SURE²,

e_κ being how far off κ may be: a long step's gain says as much of the curvature.  On the same prompts again (share 1)
that is known after a step or two; on a few of many it says next to nothing.  Both means are those of members, so what
a perturbation costs is in both; where σ has changed nothing can be said.  The fraction of one step is at most 1 and at
least −1, and is never more certain than ± `SURE`: a judge that was down for a generation is not the slope's fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seedtune.strategies.base import Observation
from seedtune.strategies.quadratic_model import positive_mean
from seedtune.strategies.shaping import TIE

Averages = Mapping[str, float]

MEMORY = 0.9
"""What an average keeps of itself each generation: it looks back about ten."""

BEND, DOUBT = 0.2, 0.25
"""See `curvature`; in spreads of the members' rewards, chosen on the tasks of benchmarks/step_model.py."""

USUAL, UNUSUAL = 0.3, 0.1
"""The reliability that is expected before anything is measured, and how far off that may be."""

LATER = 0.25
"""What is left of the usual reliability's weight, for it is that of a run's beginning: it fades to this."""

TINY = 1e-9

NONE: Averages = {"power": 0.0, "shared": 0.0, "curvature": 0.0, "success_rate": 0.5, "share": 0.0, "seen": 0}


def informative(observation: Observation) -> bool:
    """Whether a generation set members apart, by more than rounding noise and by a number that can be squared."""
    if observation.get("length", 0.0) == 0.0:
        return False
    spread = observation["spread"]
    return spread > TIE * abs(observation["reward"]) and spread * spread > 0.0


def averaged(before: Averages, observation: Observation, realized: tuple[float, float] = (0.0, 0.0)) -> Averages:
    """``before`` with one more generation's observation in it; a generation that says nothing changes nothing.

    The first few count equally, then older ones fade: no start value has a say.  ``realized`` is the
    `realized_fraction` of the last step, with its precision.
    """
    if not informative(observation):
        return before
    spread, seen = observation["spread"], before["seen"]
    now = {
        "power": observation["power"] / (spread * spread),
        "shared": observation["shared"] / (spread * spread),
        "curvature": observation["curvature"] / spread if "curvature" in observation else before["curvature"],
        "success_rate": observation.get("success_rate", before["success_rate"]),
        "share": observation["share"],
    }
    weight = max(1.0 / (seen + 1), 1.0 - MEMORY)
    mean = {name: before[name] + weight * (value - before[name]) for name, value in now.items()}
    if "curvature" in observation and "curvature_error" not in before:  # the unperturbed model was never scored so far
        mean |= {"curvature": now["curvature"], "success_rate": now["success_rate"]}
    for name, unit in (("shared_error", spread * spread), ("curvature_error", spread)):
        if name in observation:
            new = observation[name] / unit
            mean[name] = hypotenuse((1.0 - weight) * before[name], weight * new) if name in before else new
        elif name in before:
            mean[name] = before[name]
    usual = max(LATER, MEMORY * before.get("usual", 1.0))
    return {**mean, **_realized(before, *realized), "usual": usual, "seen": min(seen + 1, 1_000_000)}


def _realized(before: Averages, part: float, precision: float) -> dict[str, float]:
    """Each step counts by its precision, and less as it gets older."""
    old = MEMORY * before.get("realized_precision", 0.0)
    known = old + precision
    if not 0.0 < known < math.inf:
        return {}
    return {
        "realized_fraction": before.get("realized_fraction", 0.0)
        + precision / known * (part - before.get("realized_fraction", 0.0)),
        "realized_precision": known,
    }


def hypotenuse(one: float, other: float) -> float:
    """By products, sum and root, which are the same on every machine."""
    return math.sqrt(one * one + other * other)


def reliability(averages: Averages) -> float:
    """The part of the slope that holds over all training prompts, in [0, 1].

    Three say something about it, and count in inverse proportion to their squared errors: what is usual (`USUAL` ±
    `UNUSUAL` when a run begins, fading to a quarter of the weight); what two different prompts have in common, which
    says the less the more of the training prompts a generation has; and what steps realized of their predicted gain.
    It cannot be negative, but the mean of the three can: what counts is the mean of a normal variable given that it is
    positive.  So a few unlucky generations ask for short steps, not for none.
    """
    common, trust = _common(averages)
    realized, proof = averages.get("realized_fraction", 0.0), averages.get("realized_precision", 0.0)
    usual = averages.get("usual", 1.0) / (UNUSUAL * UNUSUAL)
    precision = usual + trust + proof
    mean = (usual / precision) * USUAL + (trust / precision) * common + (proof / precision) * realized
    return _rounded(min(1.0, positive_mean(mean, 1.0 / math.sqrt(precision))))


def _common(averages: Averages) -> tuple[float, float]:
    """What different prompts have in common, as a part of the power, and the precision of that as the reliability.

    A negative estimate is chance, and where rewards are rare more of it than its error says: it counts as 0.
    """
    shared, power, error = averages["shared"], averages["power"], averages.get("shared_error", 0.0)
    others = 1.0 - averages["share"]
    if not (power > 0.0 and 0.0 < error < math.inf and math.isfinite(shared)) or others <= 0.0:
        return 0.0, 0.0
    root = min(others * power / error, 1.0 / TINY)
    return max(0.0, min(1.0, shared / power)), root * root


def curvature(averages: Averages) -> float:
    """κ: what a step of a member's length is taken to cost, in reward spreads; at least `BEND`.

    Before anything is measured the curvature is (0 ± `DOUBT`).  With a measured one, c ± e, it is the mean of both in
    inverse proportion to their squared errors.  It is not taken for negative either: what counts is its mean given that
    it is positive.  `BEND` comes on top, for c is what random directions cost, and an update's direction is one along
    which rewards differ most.
    """
    trust = _trust(averages)
    return BEND + _rounded(positive_mean(trust and trust * averages["curvature"], curvature_error(averages)))


def curvature_error(averages: Averages) -> float:
    """How far off κ may be, in reward spreads."""
    return max(TINY, DOUBT * math.sqrt(1.0 - _trust(averages)))


def _trust(averages: Averages) -> float:
    error = averages.get("curvature_error", math.inf)
    return DOUBT * DOUBT / (DOUBT * DOUBT + error * error)


def _rounded(value: float) -> float:
    """The last bits of exp differ between machines, and verify must decide as the run did."""
    return float(f"{value:.9g}")


def forgotten(averages: Averages) -> Averages:
    """Without the realized fraction: the weights are others now."""
    return {name: value for name, value in averages.items() if name not in ("realized_fraction", "realized_precision")}


PredictedGain = Mapping[str, Any]

SURE = 0.1
"""A second-order model is not more exact than this."""

SAME = 0.01
"""σ that has changed by a larger part than this moves the members' mean reward, too."""


def predicted_gain(observation: Observation, radius: float, sigma: float, averages: Averages) -> dict[str, float]:
    """What a step of ``radius`` should gain and cost, and where it began; empty if there is nothing to compare."""
    gained, bent = observation["slope"] * radius, observation["spread"] * radius * radius
    if "reward_error" not in observation or not 0.0 < gained < math.inf:
        return {}
    error = hypotenuse(observation["reward_error"], bent * curvature_error(averages))
    made = {"gain": gained, "cost": bent * curvature(averages), "reward": observation["reward"], "error": error}
    return {**made, "sigma": sigma} if math.isfinite(made["cost"]) and math.isfinite(error) else {}


def realized_fraction(before: PredictedGain, observation: Observation, sigma: float) -> tuple[float, float]:
    """(the realized fraction of the predicted gain, its precision 1/error²); precision 0 where nothing can be said."""
    if not before or "reward_error" not in observation or abs(sigma - before["sigma"]) > SAME * sigma:
        return 0.0, 0.0
    error = hypotenuse(before["error"], observation["reward_error"])
    part = (observation["reward"] - before["reward"] + before["cost"]) / before["gain"]
    rough = hypotenuse(error / before["gain"], SURE)
    if not (math.isfinite(part) and math.isfinite(rough)):
        return 0.0, 0.0
    return min(1.0, max(-1.0, part)), 1.0 / (rough * rough)
