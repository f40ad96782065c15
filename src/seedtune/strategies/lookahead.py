"""Sharpness-aware look-ahead, ESSAM and ESSAM-F (arXiv 2602.01003)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from seedtune.strategies.base import Feedback, Observation, State, Step, update_of
from seedtune.strategies.es import EvolutionStrategy
from seedtune.types import Plan, Shift, Term


@dataclass(frozen=True, slots=True)
class LookAhead:
    """Make one step in two generations: find a descent direction at θ, then estimate the update at the point below.

    The first population, at θ, gives θ' = θ − (ρ/N) Σ zᵢ εᵢ, a step down.  The second, with fresh noise at θ', makes an
    ordinary update, which is applied at θ: the current weights are never θ'.  With ``probes`` (ESSAM-F) the first
    population has only that many members, and ‖θ' − θ‖ = ρ (their centered rewards and z-scores have the same
    direction).
    Compare with other strategies at equal rollouts, not generations.
    """

    inner: EvolutionStrategy
    radius: float
    probes: int = 0

    def initial(self) -> State:
        """Return the empty state; the first generation probes."""
        return {}

    def ask(self, state: State, generation: int) -> Plan:
        """Plan the probes at θ, or the population at θ'."""
        plan = self.inner.ask(state.get("inner", {}), generation)
        if "down" not in state:
            return replace(plan, members=plan.members[: self.probes]) if self.probes else plan
        terms = tuple(Term(int(g), int(p), float(w)) for g, p, w in state["down"])
        return replace(plan, shift=Shift(terms, self.radius if self.probes else None))

    def shape(self, feedback: Feedback) -> tuple[float, ...]:
        """Shape rewards as the inner strategy does."""
        return self.inner.shape(feedback)

    def observe(self, plan: Plan, feedback: Feedback, utilities: Sequence[float]) -> Observation:
        """Observe as the inner strategy does; probes give an empty observation."""
        return {} if plan.shift is None else self.inner.observe(plan, feedback, utilities)

    def decide(self, state: State, plan: Plan, coefficients: tuple[float, ...], observation: Observation) -> Step:
        """Leave the weights unchanged after probes; otherwise make the inner strategy's update."""
        if plan.shift is None:
            return self._probed(state, plan, coefficients)
        step = self.inner.decide(state.get("inner", {}), plan, coefficients, observation)
        return replace(step, state={"inner": dict(step.state)})

    def _probed(self, state: State, plan: Plan, coefficients: tuple[float, ...]) -> Step:
        """Store the step down.  If all probes tie there is none, and θ' is θ."""
        down = update_of(plan, coefficients, -self.radius).terms
        return Step(coefficients, 0.0, state={**state, "down": [list(term) for term in down]})
