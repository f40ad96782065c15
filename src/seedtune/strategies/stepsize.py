"""How far a generation's update goes: α given by the user, or found from what generations say."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from seedtune.strategies.averages import Averages, agreement
from seedtune.strategies.base import Signal

GROWTH, CUT = 4.0, 0.25
"""The radius grows to at most four times, and shrinks to at least a quarter, from one generation to the next."""

OPENING, SETTLING = 2.0, 2.0
"""The first step may be twice as long as ``longest``; what is above it fades within about so many generations."""

FLOOR = 0.02
"""Smallest radius: below it a run stands still."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a step depends on besides its rule's state: σ, N, the signal, and averages of it over generations."""

    sigma: float
    members: int
    signal: Signal
    averages: Averages


State = Mapping[str, Any]


class StepSize(Protocol):
    """A rule for α.  Its state is plain data."""

    def step(self, state: State, now: Situation) -> tuple[float, dict[str, Any]]:
        """α of this generation, and the next state."""
        ...

    def shrink(self, state: State) -> dict[str, Any]:
        """The state after a collapse: smaller steps from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """The α that was asked for."""

    alpha: float

    def step(self, state: State, now: Situation) -> tuple[float, dict[str, Any]]:
        """As it is, times what collapses left of it."""
        return self.alpha * state.get("factor", 1.0), dict(state)

    def shrink(self, state: State) -> dict[str, Any]:
        """Half of it."""
        return {"factor": 0.5 * state.get("factor", 1.0)}


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The step that the second-order model of the population likes best (see `seedtune.strategies.signal`).

    Measured in lengths of a member's perturbation, gain(ρ) = slope·agreement·ρ − curvature·ρ² is largest at
    ρ* = slope·agreement/(2·curvature).  The averages are exponential over about five generations.  Members were only
    seen at distance 1, so ρ is at most ``longest``, in the first generations up to twice that; that is also what an
    unmeasurably small curvature leads to, and where a run without ``start`` begins.  α = ρ·N·σ/‖w‖ then makes the step
    exactly that long.
    """

    longest: float = 0.5
    start: float | None = None
    """α to begin with; the first generations take over quickly."""

    def step(self, state: State, now: Situation) -> tuple[float, dict[str, Any]]:
        """Nothing known of the generation: no step, no news."""
        if now.signal.get("length", 0.0) == 0.0:
            return 0.0, dict(state)
        longest = self.longest * state.get("factor", 1.0) * opening(int(now.averages["seen"]))
        unit = now.members * now.sigma / now.signal["length"]
        before = state.get("radius", longest if self.start is None else self.start / unit)
        radius = min(max(best_radius(now.averages, longest), CUT * before), GROWTH * before)
        radius = min(max(radius, FLOOR * longest), longest)
        return radius * unit, {**state, "radius": radius}

    def shrink(self, state: State) -> dict[str, Any]:
        """From now on at most half of the last step."""
        longest = self.longest * state.get("factor", 1.0)
        radius = 0.5 * min(state.get("radius", longest), longest)
        return {"factor": radius / self.longest, "radius": radius}


def opening(seen: int) -> float:
    """How much longer than later ones the step of generation ``seen`` (the first is 1) may be.

    At the start rewards slope most and the weights have not drifted yet.
    """
    fading = math.exp(-max(0, seen - 1) / SETTLING)
    return float(f"{1.0 + (OPENING - 1.0) * fading:.12g}")  # the last bits of exp differ between machines


def best_radius(averages: Averages, longest: float) -> float:
    """ρ* of averaged slope, agreement and curvature, at most ``longest``."""
    gained = averages["slope"] * agreement(averages)
    cost = 2.0 * averages["curvature"]
    return longest if cost <= 0.0 or gained >= cost * longest else gained / cost
