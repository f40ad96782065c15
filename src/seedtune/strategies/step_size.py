"""Step-size rules: α given by the user, or adapted to the observations of generations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from seedtune.strategies.base import Observation, State
from seedtune.strategies.step_estimates import Averages, curvature, informative, reliability

LEAP = 32.0
"""Limit on the factor between the radii of two generations, up or down.

A start that is wrong by less is corrected before the first step, because a generation is measured before its update.
"""

FLOOR = 0.02
"""Smallest radius as a part of the longest: below it a run stagnates."""

SHORTEST = 0.05
"""Lower bound of ``longest`` after collapses, as a part of its initial value."""

RECOVERY = 1.022
"""Factor by which ``longest`` grows in each generation after a collapse, up to its initial value: it doubles in 32."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Inputs of a step besides the rule's state: σ, N, the observation, and its averages over generations."""

    sigma: float
    members: int
    observation: Observation
    averages: Averages
    factor: float = 1.0
    """Factor of the schedule of α."""


@dataclass(frozen=True, slots=True)
class ConstantAlpha:
    """The configured α."""

    alpha: float

    def step(self, state: State, now: Situation) -> tuple[float, dict[str, Any]]:
        """Return α times its schedule's factor and the factor left by collapses."""
        return now.factor * self.alpha * state.get("factor", 1.0), dict(state)

    def shrink(self, state: State) -> dict[str, Any]:
        """Halve α."""
        return {"factor": 0.5 * state.get("factor", 1.0)}


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The step of largest gain in the second-order model of the population (see `seedtune.strategies.observation`).

    Measured in lengths of a member's perturbation, gain(ρ) = slope·reliability·ρ − κρ² is largest at ρ* =
    slope·reliability/(2κ), κ being the estimated curvature (`step_estimates.curvature`).  The slope is this
    generation's; reliability and κ are averages over about ten.  Members were measured at distance 1 only, so ρ is at
    most ``longest``; a run without ``start`` begins as if its last step had had that length.  α = ρ·N·σ/‖w‖ then gives
    the step exactly this length.
    """

    longest: float = 1.25
    start: float | None = None
    """Initial α; see `LEAP`."""

    def step(self, state: State, now: Situation) -> tuple[float, dict[str, Any]]:
        """Return α of the best radius; 0, and an unchanged state, if the observation is uninformative."""
        if not informative(now.observation):
            return 0.0, dict(state)
        longest = self.longest * state.get("factor", 1.0)
        unit = now.members * now.sigma / now.observation["length"]
        before = state.get("radius", longest if self.start is None else self.start / unit)
        radius = min(max(best_radius(now.averages, longest, now.observation), before / LEAP), LEAP * before)
        radius = min(max(radius, FLOOR * longest), longest)
        grown = {"factor": min(1.0, RECOVERY * state["factor"])} if "factor" in state else {}
        return min(now.factor * radius, longest) * unit, {**state, "radius": radius, **grown}

    def shrink(self, state: State) -> dict[str, Any]:
        """Limit steps to half of the last one, but not below `SHORTEST`; see `RECOVERY`."""
        longest = self.longest * state.get("factor", 1.0)
        radius = max(0.5 * min(state.get("radius", longest), longest), SHORTEST * self.longest)
        return {"factor": radius / self.longest, "radius": radius}


def best_radius(averages: Averages, longest: float, observation: Observation) -> float:
    """ρ* from this generation's slope and the averaged reliability and curvature, at most ``longest``."""
    slope = observation["slope"] / observation["spread"]
    return min(longest, slope * reliability(averages) / (2.0 * curvature(averages)))
