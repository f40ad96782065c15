"""Sharpness-aware look-ahead, ESSAM and ESSAM-F (arXiv 2602.01003)."""

from __future__ import annotations

from dataclasses import replace

from seedtune.strategies.base import State, Step, update_of
from seedtune.strategies.es import EvolutionStrategy
from seedtune.strategies.evidence import NOTHING, Evidence
from seedtune.types import Plan, Shift, Term


class LookAhead(EvolutionStrategy):
    """Make one step in two generations: find a descent direction at θ, then estimate the update at the point below.

    The first population, at θ, gives θ' = θ − (ρ/N) Σ zᵢ εᵢ, a step down.  The second, with fresh noise at θ', makes an
    ordinary update, which is applied at θ: the current weights are never θ'.  With ``probes`` (ESSAM-F) the first
    population has only that many members, and ‖θ' − θ‖ = ρ (their centered rewards and z-scores have the same
    direction).
    Compare with other strategies at equal rollouts, not generations.
    """

    def ask(self, state: State, generation: int) -> Plan:
        """Plan the probes at θ, or the population at θ'."""
        look, plan = self.config.lookahead, super().ask(state, generation)
        if "down" not in state:
            return replace(plan, members=plan.members[: look.probes])
        terms = tuple(Term(int(g), int(p), float(w)) for g, p, w in state["down"])
        return replace(plan, shift=Shift(terms, look.radius if look.probes else None))

    def watches(self, plan: Plan) -> bool:
        """Watch in the generations that make a step."""
        return self.watch is not None and plan.shift is not None and (plan.generation // 2) % self.interval == 0

    def decide(self, state: State, plan: Plan, utilities: tuple[float, ...], evidence: Evidence = NOTHING) -> Step:
        """Store the step down after probes, empty if they tie; otherwise make the ordinary update."""
        if plan.shift is not None:
            return super().decide(state, plan, utilities, evidence)
        look = self.config.lookahead
        assert look.radius is not None
        down = update_of(plan, utilities, -look.radius if look.probes else -look.radius * self.apart)
        return Step(utilities, 0.0, state={**state, "down": [list(term) for term in down.terms]})
