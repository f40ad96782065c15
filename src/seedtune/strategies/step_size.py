"""How far a generation's update goes: α given by the user, or found from what generations say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from seedtune.strategies.base import Observation, State
from seedtune.strategies.step_estimates import Averages, curvature, informative, reliability

LEAP = 32.0
"""The radius grows and shrinks at most by this factor from one generation to the next: a start that is wrong by less is
forgotten before the first step, for a generation is measured before it is followed."""

FLOOR = 0.02
"""Smallest radius, as a part of the longest: below it a run stands still."""

SHORTEST = 0.05
"""What collapses leave of ``longest`` at least."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What a step depends on besides its rule's state: σ, N, the observation, and averages of it over generations."""

    sigma: float
    members: int
    observation: Observation
    averages: Averages
    factor: float = 1.0
    """What a schedule multiplies the step by."""


class StepSize(Protocol):
    """A rule for α.  Its state is plain data."""

    def step(self, state: State, now: Situation) -> tuple[float, dict[str, Any]]:
        """α of this generation, and the next state."""
        ...

    def shrink(self, state: State) -> dict[str, Any]:
        """The state after a collapse: smaller steps from now on."""
        ...


@dataclass(frozen=True, slots=True)
class ConstantAlpha:
    """The α that was asked for."""

    alpha: float

    def step(self, state: State, now: Situation) -> tuple[float, dict[str, Any]]:
        """As it is, times its schedule and what collapses left of it."""
        return now.factor * self.alpha * state.get("factor", 1.0), dict(state)

    def shrink(self, state: State) -> dict[str, Any]:
        """Half of it."""
        return {"factor": 0.5 * state.get("factor", 1.0)}


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The step that the second-order model of the population likes best (see `seedtune.strategies.observation`).

    Measured in lengths of a member's perturbation, gain(ρ) = slope·reliability·ρ − κρ² is largest at
    ρ* = slope·reliability/(2κ), κ being the curvature as far as it is known (`step_estimates.curvature`).  The slope is
    this generation's; reliability and κ are averages over about ten.  Members were only seen at distance 1, so ρ is at
    most ``longest``; a run without ``start`` begins as if its last step had been that.  α = ρ·N·σ/‖w‖ then makes the
    step exactly that long.
    """

    longest: float = 1.25
    start: float | None = None
    """α to begin with; see `LEAP`."""

    def step(self, state: State, now: Situation) -> tuple[float, dict[str, Any]]:
        """Nothing known of the generation: no step, no news."""
        if not informative(now.observation):
            return 0.0, dict(state)
        longest = self.longest * state.get("factor", 1.0)
        unit = now.members * now.sigma / now.observation["length"]
        before = state.get("radius", longest if self.start is None else self.start / unit)
        radius = min(max(best_radius(now.averages, longest, now.observation), before / LEAP), LEAP * before)
        radius = min(max(radius, FLOOR * longest), longest)
        return min(now.factor * radius, longest) * unit, {**state, "radius": radius}

    def shrink(self, state: State) -> dict[str, Any]:
        """From now on at most half of the last step, but never next to nothing."""
        longest = self.longest * state.get("factor", 1.0)
        radius = max(0.5 * min(state.get("radius", longest), longest), SHORTEST * self.longest)
        return {"factor": radius / self.longest, "radius": radius}


def best_radius(averages: Averages, longest: float, observation: Observation) -> float:
    """ρ* of this generation's slope and of averaged reliability and curvature, at most ``longest``."""
    slope = observation["slope"] / observation["spread"]
    return min(longest, slope * reliability(averages) / (2.0 * curvature(averages)))
