"""Evolution strategies at scale (arXiv 2509.24372), with or without antithetic pairs.

Also schedules of σ and α, the anchor to θ₀, and rollback after a collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from seedtune.config.sections import ScheduleSettings
from seedtune.strategies import schedules, step_estimates
from seedtune.strategies.base import Feedback, Observation, State, Step, directions
from seedtune.strategies.collapse_guard import Guard
from seedtune.strategies.observation import observe, radius_of
from seedtune.strategies.step_size import Situation, StepSize
from seedtune.types import Decay, Member, Plan

FeedbackShaping = Callable[[Feedback], tuple[float, ...]]

NO_DECAY = Decay()

WIDER = 1.25
"""The collapse guard restarts when σ has grown by more than this factor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionStrategy:
    """θ ← θ + (α/N) Σ zᵢ εᵢ, followed by the anchor's pull towards θ₀.

    ``antithetic`` evaluates +ε and −ε of N/2 noise samples; otherwise N samples once each (the paper's form).  Noise is
    drawn anew every ``reuse`` generations (1: always; EGGROLL, arXiv 2511.16652, keeps it for 4 with fresh prompts).
    """

    shaping: FeedbackShaping
    population: int
    sigma: float
    alpha: StepSize
    antithetic: bool = True
    reuse: int = 1
    sigma_schedule: ScheduleSettings
    alpha_schedule: ScheduleSettings
    decay: Decay = NO_DECAY
    """λ₂ and λ₁ of the anchored decay, before multiplication by α."""

    steady_pull: bool = False
    """Scale the pull by the paper's α = σ/2: adaptive steps change α by orders of magnitude."""

    guard: Guard | None = None

    compares: bool = True
    """Compare each step's realized gain with its predicted gain.

    False where more than the step moves the weights, or where a reward compares members with each other and therefore
    has the same mean for any members.
    """

    def initial(self) -> State:
        """Return the empty state."""
        return {}

    def ask(self, state: State, generation: int) -> Plan:
        """Plan N members, with fresh noise or with an earlier generation's for up to ``reuse`` generations."""
        signs = (1, -1) if self.antithetic else (1,)
        count = self.population // len(signs)
        drawn = generation - generation % self.reuse
        members = tuple(Member(drawn, pair, sign) for pair in range(count) for sign in signs)
        sigma = self.sigma * schedules.factor(self.sigma_schedule, generation)
        return Plan(generation, sigma, members)

    def shape(self, feedback: Feedback) -> tuple[float, ...]:
        """Shape rewards into one utility per member."""
        return self.shaping(feedback)

    def observe(self, plan: Plan, feedback: Feedback, utilities: Sequence[float]) -> Observation:
        """See `seedtune.strategies.observation`."""
        return observe(plan, feedback, utilities)

    def decide(self, state: State, plan: Plan, coefficients: tuple[float, ...], observation: Observation) -> Step:
        """Make a step by the step-size rule, or roll back after a collapse."""
        after = self._after(state, plan, observation)
        if after.get("guard", {}).get("collapsed"):
            return self._back(after, plan, coefficients, observation)
        factor = schedules.factor(self.alpha_schedule, plan.generation)
        now = Situation(plan.sigma, len(plan.members), observation, after["averages"], factor)
        alpha, alpha_state = self.alpha.step(after["alpha"], now)
        pulls = plan.sigma / 2 if self.steady_pull else alpha
        moves = alpha != 0.0 and any(directions(plan.members, coefficients).values())
        predicted = (
            state.get("predicted_gain", {})
            if alpha == 0.0
            else self._predicted_gain(plan, alpha, observation, after["averages"])
        )
        return Step(
            coefficients,
            alpha,
            self._decay(pulls) if moves else None,
            _filled({**after, "alpha": alpha_state, "predicted_gain": predicted}),
            observation,
        )

    def _predicted_gain(
        self, plan: Plan, alpha: float, observation: Observation, mean: step_estimates.Averages
    ) -> dict[str, float]:
        """Predict the step's gain, which the next generation compares with the realized one."""
        if not self.compares or not step_estimates.informative(observation):
            return {}
        radius = radius_of(alpha, plan.sigma, observation, len(plan.members))
        return step_estimates.predicted_gain(observation, radius, plan.sigma, mean)

    def _after(self, state: State, plan: Plan, observation: Observation) -> dict[str, Any]:
        """Return the next state, with the step-size rule's state unchanged."""
        realized = step_estimates.realized_fraction(state.get("predicted_gain", {}), observation, plan.sigma)
        mean = step_estimates.averaged(state.get("averages", step_estimates.NONE), observation, realized)
        after = {
            "averages": mean,
            "alpha": state.get("alpha", {}),
        }
        if self.guard is not None:
            after["guard"] = self._watched(state.get("guard", {}), plan, observation)
        return after

    def _watched(self, before: State, plan: Plan, observation: Observation) -> dict[str, Any]:
        """Update the guard's state; it restarts when σ grows, since rewards under different σ are not comparable."""
        assert self.guard is not None
        if not observation:
            return self.guard.miss(before)
        sigma = before.get("sigma", plan.sigma)
        if plan.sigma > WIDER * sigma:
            before, sigma = {}, plan.sigma
        error = observation["spread"] * observation["spread"] / len(plan.members)
        return {**self.guard.watch(before, observation["reward"], plan.generation, error), "sigma": sigma}

    def _back(
        self, after: dict[str, Any], plan: Plan, coefficients: tuple[float, ...], observation: Observation
    ) -> Step:
        """Roll back to the best generation, with smaller steps from then on."""
        assert self.guard is not None
        to = after["guard"]["best_at"]
        guard = {**self.guard.back(after["guard"]), "sigma": after["guard"]["sigma"]}
        mean, alpha = step_estimates.forgotten(after["averages"]), self.alpha.shrink(after["alpha"])
        state = {**after, "guard": guard, "averages": mean, "alpha": alpha}
        return Step(coefficients, 0.0, None, _filled(state), observation, rollback_to=to)

    def _decay(self, alpha: float) -> Decay | None:
        decay = Decay(min(1.0, alpha * self.decay.l2), alpha * self.decay.l1)
        return decay if decay.l2 or decay.l1 else None


def _filled(state: dict[str, Any]) -> dict[str, Any]:
    """Drop the entries of rules with an empty state."""
    return {name: value for name, value in state.items() if value != {}}
