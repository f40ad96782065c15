"""The step-size rule: α given by the user, or steps that are as long as the agreement between prompts allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedtune.strategies.base import State, StatefulRule, directions
from seedtune.strategies.evidence import Evidence
from seedtune.types import Plan

LONGEST = 1.0
"""Largest step ratio: members were evaluated at 1."""

GAIN = 0.25
"""√m/(2s), where m is the mean square of noise samples' odd parts, is 0.35 if only slopes set members apart.

It is less here because part of what sets them apart is no slope (a member may be broken, and its opposite not), and
because rewards fall faster near the model than the second-order model says: seen on puzzles with exact answers
(docs/decisions/2026-11-30-no-number-to-choose.md).
"""

AGREEMENT, COST = 0.2, 1.0
"""Agreement and cost of a run about which nothing is known."""

LEAST_AGREEMENT = 0.05
"""Lower bound of the agreement: ρ = 0.05 with 32 members at a cost of 1, half of the paper's (α = σ/2, N = 30)."""

DOUBT, MEMORY = 4, 32
"""Generations that these count for, and generations of which the evidence is an average."""

LEAST_COST = 0.3
"""Lower bound of the cost: an update's direction costs more than a random one."""

WORST = -3.0
"""Lowest agreement of a generation that counts: it is unbounded below, and seldom lower from eight samples on."""

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
    averages of κ and c over generations.  Half of the best step still has three quarters of its gain, and twice the
    best step has none, so κ is taken a standard error below its average, but not below `LEAST_AGREEMENT`.
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
    weight = _weight(state)
    cost = max(LEAST_COST, COST + weight * (state.get("cost", COST) - COST))
    return min(LONGEST, GAIN * math.sqrt(samples) * sure_agreement(state, samples) / cost)


def sure_agreement(state: Mapping[str, float], samples: int) -> float:
    """Return the agreement less its standard error, `LEAST_AGREEMENT` at least.

    Of Q samples a generation's agreement has a standard error of about √(2/Q), that of the mean square of Q numbers.
    """
    weight = _weight(state)
    agreement = AGREEMENT + weight * (state.get("agreement", AGREEMENT) - AGREEMENT)
    return max(LEAST_AGREEMENT, agreement - weight * math.sqrt(2.0 / samples / max(1.0, state.get("seen", 0.0))))


def _weight(state: Mapping[str, float]) -> float:
    """Return what the run's own evidence counts, beside that of other runs."""
    seen = state.get("seen", 0.0)
    return seen / (seen + DOUBT)


def _averaged(state: Mapping[str, float], evidence: Evidence) -> dict[str, float]:
    """Average the evidence of about `MEMORY` generations; one without agreement says nothing."""
    known = {name: state[name] for name in ("seen", "agreement", "cost") if name in state}
    if evidence.agreement is None:
        return known
    seen = min(known.get("seen", 0) + 1, MEMORY)
    agreed = min(1.0, max(WORST, evidence.agreement))
    cost = COST if evidence.cost is None else min(10.0, max(-10.0, evidence.cost))
    before, costed = known.get("agreement", agreed), known.get("cost", cost)
    return {"seen": seen, "agreement": before + (agreed - before) / seen, "cost": costed + (cost - costed) / seen}


def length_of(plan: Plan, utilities: Sequence[float]) -> float:
    """‖w‖ of the noise samples' coefficients w, correctly rounded, so that every machine computes the same step."""
    return math.sqrt(math.fsum(weight * weight for weight in directions(plan.members, utilities).values()))
