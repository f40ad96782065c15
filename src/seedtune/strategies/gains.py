"""What a step gained against what its members had promised: how much of their slope holds, as the next ones see it.

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

from seedtune.strategies.averages import Averages, hypotenuse, stiffness, stiffness_error
from seedtune.strategies.base import Signal

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
