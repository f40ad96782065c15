"""Step-size rules: α given by the user, or adapted to the observations of generations."""

from __future__ import annotations

from dataclasses import dataclass

from seedtune.strategies.base import Averages, Observation, Situation, State, StatefulRule
from seedtune.strategies.step_estimates import curvature, informative, reliability

LEAP = 32.0
"""Limit on the factor between the step ratios of two generations, up or down.

A start that is wrong by less is corrected before the first step, because a generation is measured before its update.
"""

FLOOR = 0.02
"""Smallest step ratio as a part of the largest: below it a run stagnates."""

SHORTEST = 0.05
"""Lower bound of ``max_step_ratio`` after collapses, as a part of its initial value."""

RECOVERY = 1.022
"""Growth of ``max_step_ratio`` per generation after a collapse, up to its initial value: it doubles in 32."""


@dataclass(frozen=True, slots=True)
class ConstantAlpha(StatefulRule):
    """The configured α."""

    alpha: float

    def update(self, state: State, now: Situation) -> tuple[float, State]:
        """Return α times its schedule's factor and the factor left by collapses."""
        return now.factor * self.alpha * state.get("factor", 1.0), state

    def rolled_back(self, state: State) -> State:
        """Halve α."""
        return {"factor": 0.5 * state.get("factor", 1.0)}


@dataclass(frozen=True, slots=True)
class Adaptive(StatefulRule):
    """The step of largest gain in the second-order model of the population (see `seedtune.strategies.observation`).

    Measured in lengths of a member's perturbation, gain(ρ) = slope·reliability·ρ − κρ² is largest at ρ* =
    slope·reliability/(2κ), κ being the estimated curvature (`step_estimates.curvature`).  The slope is this
    generation's; reliability and κ are averages over about ten.  Members were measured at distance 1 only, so ρ is at
    most ``max_step_ratio``; a run without ``start`` begins as if its last step had had that length.  α = ρ·N·σ/‖w‖ then
    gives the step exactly this length.
    """

    max_step_ratio: float = 1.25
    start: float | None = None
    """Initial α; see `LEAP`."""

    def update(self, state: State, now: Situation) -> tuple[float, State]:
        """Return α of the best step ratio; 0, and an unchanged state, if the observation is uninformative."""
        if not informative(now.observation):
            return 0.0, state
        largest = self.max_step_ratio * state.get("factor", 1.0)
        unit = now.members * now.sigma / now.observation["length"]
        before = state.get("step_ratio", largest if self.start is None else self.start / unit)
        ratio = min(max(best_step_ratio(now.averages, largest, now.observation), before / LEAP), LEAP * before)
        ratio = min(max(ratio, FLOOR * largest), largest)
        grown = {"factor": min(1.0, RECOVERY * state["factor"])} if "factor" in state else {}
        return min(now.factor * ratio, largest) * unit, {**state, "step_ratio": ratio, **grown}

    def rolled_back(self, state: State) -> State:
        """Limit steps to half of the last one, but not below `SHORTEST`; see `RECOVERY`."""
        largest = self.max_step_ratio * state.get("factor", 1.0)
        ratio = max(0.5 * min(state.get("step_ratio", largest), largest), SHORTEST * self.max_step_ratio)
        return {"factor": ratio / self.max_step_ratio, "step_ratio": ratio}


def best_step_ratio(averages: Averages, max_step_ratio: float, observation: Observation) -> float:
    """ρ* from this generation's slope and the averaged reliability and curvature, at most ``max_step_ratio``."""
    slope = observation["slope"] / observation["spread"]
    return min(max_step_ratio, slope * reliability(averages) / (2.0 * curvature(averages)))
