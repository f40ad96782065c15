"""The σ of a run to which none was given: perturbations that leave the model itself, and still make a difference.

Members must answer differently enough to be compared, and must still speak the model's language.  Both are measured by
the loss: how much less probable a member finds the unperturbed model's own answers, in nats per token (an estimate of
KL(θ ‖ member)).  It is smooth where rewards are chaotic, known to a tenth from four members and a few prompts, needs no
reward, and grows as σ² until the model breaks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

TARGET = 0.1
"""Loss of a member in nats per token (docs/decisions/2026-11-30-no-number-to-choose.md)."""

START = 0.001
"""First σ tried, the paper's for models of billions of parameters."""

CLOSE = 1.5
"""A loss within this factor of the target ends the search; the rest is extrapolated."""

ROUNDS = 6
LEAP = 8.0
"""Most rounds, and the largest factor between the σ of two."""


BROKEN = 1e3
"""Loss that stands for one that is not finite: the member's weights have overflown."""


class Measurement(NamedTuple):
    """The mean loss of members at one σ, in nats per token."""

    sigma: float
    loss: float


def following(measured: Sequence[Measurement]) -> float | None:
    """Return the σ to measure next, None if the search has ended."""
    if not measured:
        return START
    loss = measured[-1].loss
    if len(measured) == ROUNDS or TARGET / CLOSE <= loss <= TARGET * CLOSE:
        return None
    return _rounded(_solved(measured))


def found(measured: Sequence[Measurement]) -> float:
    """Return the σ at which the loss is `TARGET`, by the measurements of a finished search, to two digits."""
    return _rounded(_solved(measured), digits=2)


def _solved(measured: Sequence[Measurement]) -> float:
    """Solve loss(σ) = TARGET by the power law through the nearest measurements below and above, or through σ²."""
    below = [m for m in measured if 0.0 < m.loss <= TARGET]
    above = [m for m in measured if m.loss > TARGET]
    last = measured[-1]
    if below and above:
        low, high = max(below, key=lambda m: m.sigma), min(above, key=lambda m: m.sigma)
        if low.sigma < high.sigma:
            power = math.log(high.loss / low.loss) / math.log(high.sigma / low.sigma)
            return float(low.sigma * (TARGET / low.loss) ** (1.0 / power))
    ratio = math.sqrt(TARGET / last.loss) if last.loss > 0.0 else LEAP
    return last.sigma * min(max(ratio, 1.0 / LEAP), LEAP)


def _rounded(sigma: float, digits: int = 4) -> float:
    """Round, because the last bits of powers differ between machines."""
    return float(f"{sigma:.{digits}g}")
