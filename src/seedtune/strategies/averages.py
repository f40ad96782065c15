"""Signals averaged over generations, in units of each generation's reward spread."""

from __future__ import annotations

import math
from collections.abc import Mapping

from seedtune.response import positive_mean
from seedtune.shaping import TIE
from seedtune.strategies.base import Signal

Averages = Mapping[str, float]

MEMORY = 0.8
"""What an average keeps of itself each generation: it looks back about five."""

BEND, DOUBT = 0.15, 0.5
"""See `stiffness`; chosen on the tasks of benchmarks/results/step-size.md, in spreads of the members' rewards."""

TINY = 1e-9

NONE: Averages = {"slope": 0.0, "power": 0.0, "shared": 0.0, "curvature": 0.0, "better": 0.5, "share": 0.0, "seen": 0}


def informative(signal: Signal) -> bool:
    """Whether a generation set members apart, by more than rounding noise and by a number that can be squared."""
    if signal.get("length", 0.0) == 0.0:
        return False
    spread = signal["spread"]
    return spread > TIE * abs(signal["reward"]) and spread * spread > 0.0


def averaged(before: Averages, signal: Signal) -> Averages:
    """``before`` with one more generation's signal in it; a generation that says nothing changes nothing.

    The first few count equally, then older ones fade: no start value has a say.
    """
    if not informative(signal):
        return before
    spread, seen = signal["spread"], before["seen"]
    now = {
        "slope": signal["slope"] / spread,
        "power": signal["power"] / spread**2,
        "shared": signal["shared"] / spread**2,
        "curvature": signal["curvature"] / spread if "curvature" in signal else before["curvature"],
        "better": signal.get("better", before["better"]),
        "share": signal["share"],
    }
    weight = max(1.0 / (seen + 1), 1.0 - MEMORY)
    mean = {name: before[name] + weight * (value - before[name]) for name, value in now.items()}
    if "curvature" in signal and "curvature_error" not in before:  # the centre was never scored so far
        mean |= {"curvature": now["curvature"], "better": now["better"]}
    for name, unit in (("shared_error", spread**2), ("curvature_error", spread)):
        if name in signal:
            new = signal[name] / unit
            mean[name] = _hypotenuse((1.0 - weight) * before[name], weight * new) if name in before else new
        elif name in before:
            mean[name] = before[name]
    return {**mean, "seen": min(seen + 1, 1_000_000)}


def _hypotenuse(one: float, other: float) -> float:
    """By products, sum and root, which are the same on every machine."""
    return math.sqrt(one * one + other * other)


def agreement(averages: Averages) -> float:
    """The part of the slope that holds over all training prompts, in [0, 1]: share + (1 − share)·common.

    What prompts have in common cannot be negative, but its estimate can: what counts is the mean of a normal variable
    (estimate, its standard error) given that it is positive.  So a few unlucky generations ask for short steps, not for
    none, and a reward whose estimate is rough is not taken for one that nothing can be learned from.
    """
    shared, power, error = averages["shared"], averages["power"], averages.get("shared_error", 0.0)
    if not (power > 0.0 and math.isfinite(shared)):
        common = 0.0
    elif 0.0 < error < math.inf:
        # The last bits of exp differ between machines, and verify must decide as the run did.
        common = float(f"{min(1.0, positive_mean(shared, error) / power):.12g}")
    else:
        common = min(1.0, max(0.0, shared / power))
    return averages["share"] + (1.0 - averages["share"]) * common


def stiffness(averages: Averages) -> float:
    """κ: what a step of a member's length is taken to cost, in reward spreads; at least `BEND`.

    Before anything is measured the curvature is (0 ± `DOUBT`).  With a measured one, c ± e, it is the mean of both in
    inverse proportion to their squared errors.  It is not taken for negative either: what counts is its mean given that
    it is positive.  `BEND` comes on top, for c is what random directions cost, and an update's direction is one along
    which rewards differ most.
    """
    error = averages.get("curvature_error", math.inf)
    trust = DOUBT * DOUBT / (DOUBT * DOUBT + error * error)
    expected, doubt = (trust and trust * averages["curvature"]), max(TINY, DOUBT * math.sqrt(1.0 - trust))
    return BEND + float(f"{positive_mean(expected, doubt):.12g}")
