"""Signals averaged over generations, in units of each generation's reward spread.

What a step gained against what its members had promised: how much of their slope holds, as the next ones see it.

The members of a generation promise that a step of ρ lengths gains promise − cost = slope·ρ − κρ² on their own prompts.
The next generation's mean reward tells, as exactly as two means over members and prompts can: with
e² = e_t² + e_{t+1}²,

    kept = (R̄_{t+1} − R̄_t + cost)/promise,   1/precision = (e² + e_κ²ρ⁴)/promise² + SURE²,

e_κ being how far off κ may be: a long step's gain says as much of the curvature.  On the same prompts again (share 1)
that is known after a step or two; on a few of many it says next to nothing.  Both means are those of members, so what
a perturbation costs is in both; where σ has changed nothing can be said.  One step counts as at most all of its promise
kept, and at least its opposite, and is never more certain than ± `SURE`: a judge that was down for a generation is not
the slope's fault.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from seedtune.strategies.base import Signal
from seedtune.strategies.quadratic_model import positive_mean
from seedtune.strategies.shaping import TIE

Averages = Mapping[str, float]

MEMORY = 0.9
"""What an average keeps of itself each generation: it looks back about ten."""

BEND, DOUBT = 0.2, 0.25
"""See `stiffness`; in spreads of the members' rewards, chosen on the tasks of benchmarks/step_model.py."""

USUAL, UNUSUAL = 0.3, 0.1
"""The agreement that is expected before anything is measured, and how far off that may be."""

LATER = 0.25
"""What is left of the usual agreement's weight, for it is that of a run's beginning: it fades to this."""

TINY = 1e-9

NONE: Averages = {"power": 0.0, "shared": 0.0, "curvature": 0.0, "better": 0.5, "share": 0.0, "seen": 0}


def informative(signal: Signal) -> bool:
    """Whether a generation set members apart, by more than rounding noise and by a number that can be squared."""
    if signal.get("length", 0.0) == 0.0:
        return False
    spread = signal["spread"]
    return spread > TIE * abs(signal["reward"]) and spread * spread > 0.0


def averaged(before: Averages, signal: Signal, kept: tuple[float, float] = (0.0, 0.0)) -> Averages:
    """``before`` with one more generation's signal in it; a generation that says nothing changes nothing.

    The first few count equally, then older ones fade: no start value has a say.  ``kept`` is what `gains.kept` says of
    the last step, with its precision.
    """
    if not informative(signal):
        return before
    spread, seen = signal["spread"], before["seen"]
    now = {
        "power": signal["power"] / (spread * spread),
        "shared": signal["shared"] / (spread * spread),
        "curvature": signal["curvature"] / spread if "curvature" in signal else before["curvature"],
        "better": signal.get("better", before["better"]),
        "share": signal["share"],
    }
    weight = max(1.0 / (seen + 1), 1.0 - MEMORY)
    mean = {name: before[name] + weight * (value - before[name]) for name, value in now.items()}
    if "curvature" in signal and "curvature_error" not in before:  # the centre was never scored so far
        mean |= {"curvature": now["curvature"], "better": now["better"]}
    for name, unit in (("shared_error", spread * spread), ("curvature_error", spread)):
        if name in signal:
            new = signal[name] / unit
            mean[name] = hypotenuse((1.0 - weight) * before[name], weight * new) if name in before else new
        elif name in before:
            mean[name] = before[name]
    usual = max(LATER, MEMORY * before.get("usual", 1.0))
    return {**mean, **_kept(before, *kept), "usual": usual, "seen": min(seen + 1, 1_000_000)}


def _kept(before: Averages, part: float, precision: float) -> dict[str, float]:
    """Each step counts by its precision, and less as it gets older."""
    old = MEMORY * before.get("kept_precision", 0.0)
    known = old + precision
    if not 0.0 < known < math.inf:
        return {}
    return {
        "kept": before.get("kept", 0.0) + precision / known * (part - before.get("kept", 0.0)),
        "kept_precision": known,
    }


def hypotenuse(one: float, other: float) -> float:
    """By products, sum and root, which are the same on every machine."""
    return math.sqrt(one * one + other * other)


def agreement(averages: Averages) -> float:
    """The part of the slope that holds over all training prompts, in [0, 1].

    Three say something about it, and count in inverse proportion to their squared errors: what is usual (`USUAL` ±
    `UNUSUAL` when a run begins, fading to a quarter of the weight); what two different prompts have in common, which
    says the less the more of the training prompts a generation has; and what steps kept of their promises (`gains`).
    It cannot be negative, but the mean of the three can: what counts is the mean of a normal variable given that it is
    positive.  So a few unlucky generations ask for short steps, not for none.
    """
    common, trust = _common(averages)
    kept, proof = averages.get("kept", 0.0), averages.get("kept_precision", 0.0)
    usual = averages.get("usual", 1.0) / (UNUSUAL * UNUSUAL)
    precision = usual + trust + proof
    mean = (usual / precision) * USUAL + (trust / precision) * common + (proof / precision) * kept
    return _rounded(min(1.0, positive_mean(mean, 1.0 / math.sqrt(precision))))


def _common(averages: Averages) -> tuple[float, float]:
    """What different prompts have in common, as a part of the power, and the precision of that as the agreement.

    A negative estimate is chance, and where rewards are rare more of it than its error says: it counts as 0.
    """
    shared, power, error = averages["shared"], averages["power"], averages.get("shared_error", 0.0)
    others = 1.0 - averages["share"]
    if not (power > 0.0 and 0.0 < error < math.inf and math.isfinite(shared)) or others <= 0.0:
        return 0.0, 0.0
    root = min(others * power / error, 1.0 / TINY)
    return max(0.0, min(1.0, shared / power)), root * root


def stiffness(averages: Averages) -> float:
    """κ: what a step of a member's length is taken to cost, in reward spreads; at least `BEND`.

    Before anything is measured the curvature is (0 ± `DOUBT`).  With a measured one, c ± e, it is the mean of both in
    inverse proportion to their squared errors.  It is not taken for negative either: what counts is its mean given that
    it is positive.  `BEND` comes on top, for c is what random directions cost, and an update's direction is one along
    which rewards differ most.
    """
    trust = _trust(averages)
    return BEND + _rounded(positive_mean(trust and trust * averages["curvature"], stiffness_error(averages)))


def stiffness_error(averages: Averages) -> float:
    """How far off κ may be, in reward spreads."""
    return max(TINY, DOUBT * math.sqrt(1.0 - _trust(averages)))


def _trust(averages: Averages) -> float:
    error = averages.get("curvature_error", math.inf)
    return DOUBT * DOUBT / (DOUBT * DOUBT + error * error)


def _rounded(value: float) -> float:
    """The last bits of exp differ between machines, and verify must decide as the run did."""
    return float(f"{value:.9g}")


def forgotten(averages: Averages) -> Averages:
    """Without what steps kept: the centre is another one now."""
    return {name: value for name, value in averages.items() if name not in ("kept", "kept_precision")}


Promise = Mapping[str, Any]

SURE = 0.1
"""A second-order model is not more exact than this."""

SAME = 0.01
"""σ that has changed by a larger part than this moves the members' mean reward, too."""


def promise(signal: Signal, radius: float, sigma: float, averages: Averages) -> dict[str, float]:
    """What a step of ``radius`` should gain and cost, and where it began; empty if there is nothing to compare."""
    promised, bent = signal["slope"] * radius, signal["spread"] * radius * radius
    if "reward_error" not in signal or not 0.0 < promised < math.inf:
        return {}
    error = hypotenuse(signal["reward_error"], bent * stiffness_error(averages))
    made = {"gain": promised, "cost": bent * stiffness(averages), "reward": signal["reward"], "error": error}
    return {**made, "sigma": sigma} if math.isfinite(made["cost"]) and math.isfinite(error) else {}


def kept(before: Promise, signal: Signal, sigma: float) -> tuple[float, float]:
    """(part of the promise that was kept, its precision 1/error²); precision 0 where nothing can be said."""
    if not before or "reward_error" not in signal or abs(sigma - before["sigma"]) > SAME * sigma:
        return 0.0, 0.0
    error = hypotenuse(before["error"], signal["reward_error"])
    part = (signal["reward"] - before["reward"] + before["cost"]) / before["gain"]
    rough = hypotenuse(error / before["gain"], SURE)
    if not (math.isfinite(part) and math.isfinite(rough)):
        return 0.0, 0.0
    return min(1.0, max(-1.0, part)), 1.0 / (rough * rough)
