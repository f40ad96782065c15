"""The step-size rule: α given by the user, or steps that are as long as the agreement between prompts allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedtune.strategies.base import State, StatefulRule, directions
from seedtune.strategies.evidence import Evidence
from seedtune.types import Plan

SHORTEST, LONGEST = 0.1, 1.0
"""Limits of the step ratio: the paper's steps (α = σ/2, N = 30) have 0.1, and members were evaluated at 1."""

GAIN = 0.35
"""Half of √m/s, where m is the mean square of noise samples' odd parts: 1/√2 if only slopes set members apart."""

AGREEMENT, COST = 0.2, 1.0
"""Agreement and cost of a run about which nothing is known."""

DOUBT, MEMORY = 8, 10
"""Generations that these count for, and generations of which the evidence is an average."""

LOWEST = 0.5
"""Lower bound of the cost: an update's direction costs more than a random one."""

RECOVERY = 1.022
"""Growth per generation of a step that a rollback has halved, up to its full length: it doubles in 32 generations."""


@dataclass(frozen=True, slots=True)
class StepSize(StatefulRule):
    """α itself, or the α of a step that is ρ times as long as a member's perturbation.

    A step (α/N) Σ w_q ε_q over Q noise samples with coefficients w_q is ρ = α‖w‖/(Nσ) such lengths: in many dimensions
    noise samples are orthogonal and equally long.  So α = ρNσ/‖w‖, whatever N, the shaping and the rewards' spread.

    To second order a step of ρ gains √(Qm)·κ·ρ − c·s·ρ² on other prompts, where s is the members' spread, m the mean
    square of what sets noise samples apart, κ the part of it that prompts agree on, and c·s the cost of a random step
    as long as a member's perturbation (`seedtune.strategies.evidence`).  The gain is largest at ρ = √(Qm)·κ/(2cs), with
    averages of κ and c over generations, between `SHORTEST` and `LONGEST`.
    """

    alpha: float | None = None

    def update(
        self, state: State, plan: Plan, utilities: Sequence[float], evidence: Evidence, factor: float
    ) -> tuple[float, State]:
        """Return α, with the ``factor`` of its schedule and that of rollbacks; 0 if all utilities are 0."""
        length = length_of(plan, utilities)
        if length == 0.0:
            return 0.0, state
        shorter: float = state.get("factor", 1.0)
        grown = min(1.0, RECOVERY * shorter)
        kept: dict[str, float] = {} if grown == 1.0 else {"factor": grown}
        if self.alpha is not None:
            return factor * shorter * self.alpha, kept
        kept |= _averaged(state, evidence)
        samples = len({(member.generation, member.pair) for member in plan.members})
        alpha = step_ratio(kept, samples) * len(plan.members) * plan.sigma / length
        return factor * shorter * alpha, kept

    def rolled_back(self, state: State) -> State:
        """Halve the next steps; see `RECOVERY`."""
        return {**state, "factor": 0.5 * state.get("factor", 1.0)}


def step_ratio(state: Mapping[str, float], samples: int) -> float:
    """Return ρ for ``samples`` noise samples, by the averaged evidence."""
    seen = state["seen"]
    weight = seen / (seen + DOUBT)
    agreement = AGREEMENT + weight * (state["agreement"] - AGREEMENT)
    cost = max(LOWEST, COST + weight * (state["cost"] - COST))
    return min(LONGEST, max(SHORTEST, GAIN * math.sqrt(samples) * agreement / cost))


def _averaged(state: Mapping[str, float], evidence: Evidence) -> dict[str, float]:
    """Average the evidence of about `MEMORY` generations; what a generation does not know is as usual."""
    seen = min(state.get("seen", 0) + 1, MEMORY)
    agreed = AGREEMENT if evidence.agreement is None else min(1.0, max(-1.0, evidence.agreement))
    cost = COST if evidence.cost is None else min(10.0, max(-10.0, evidence.cost))
    before, costed = state.get("agreement", agreed), state.get("cost", cost)
    return {"seen": seen, "agreement": before + (agreed - before) / seen, "cost": costed + (cost - costed) / seen}


def length_of(plan: Plan, utilities: Sequence[float]) -> float:
    """‖w‖ of the noise samples' coefficients w, correctly rounded, so that every machine computes the same step."""
    return math.sqrt(math.fsum(weight * weight for weight in directions(plan.members, utilities).values()))
