"""Evolution strategies at scale (arXiv 2509.24372), with or without antithetic pairs.

Also schedules of σ and α, the anchor to θ₀, and rollback after a collapse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from seedtune.config.config import Config
from seedtune.strategies import schedules, step_estimates
from seedtune.strategies.base import Feedback, Observation, State, Step, directions
from seedtune.strategies.collapse_guard import Guard
from seedtune.strategies.observation import observe, radius_of
from seedtune.strategies.shaping import SHAPINGS, centered, combine, unshaped
from seedtune.strategies.step_size import Adaptive, ConstantAlpha, Situation
from seedtune.types import Decay, Member, Plan


class EvolutionStrategy:
    """θ ← θ + (α/N) Σ zᵢ εᵢ, followed by the anchor's pull towards θ₀.

    ``antithetic`` evaluates +ε and −ε of N/2 noise samples; otherwise N samples once each (the paper's form).  Noise is
    drawn anew every ``noise_reuse`` generations (EGGROLL, arXiv 2511.16652, keeps it for 4 with fresh prompts).

    A strategy is a pure state machine over member ids and rewards and never sees weights.  ``ask`` returns the members
    to evaluate.  ``tell`` turns their scores into a step in calls, so that a ledger can be checked without scores:
    ``shape`` and ``balance`` make utilities, ``observe`` a few numbers about the generation (the observation), and
    ``decide`` a step from these two alone.  States ({} before generation 0) and observations are plain JSON data,
    recorded in the ledger.
    """

    def __init__(self, config: Config, reward_weights: Sequence[float] = (1.0,)) -> None:
        self.config, self.reward_weights = config, reward_weights
        self.guard = Guard(unscored=3 if config.uses_likelihood else None) if config.guarded else None
        # Noise in K subspaces includes √K, and CoPES's step for plain noise, (α/N_k) Σ z ε, has √K more.
        self.apart = math.sqrt(config.subspaces)
        longest = {} if config.max_step_ratio is None else {"longest": config.max_step_ratio}
        self.rule = (
            Adaptive(start=config.alpha, **longest) if config.adaptive else ConstantAlpha(config.step * self.apart)
        )

    def ask(self, state: State, generation: int) -> Plan:
        """Return a generation's plan: its members, with fresh or reused noise, σ, and the shift that they perturb."""
        config, signs = self.config, (1, -1) if self.config.antithetic else (1,)
        drawn = generation - generation % config.noise_reuse
        pairs = range(config.population // len(signs))
        members = tuple(Member(drawn, pair, sign) for pair in pairs for sign in signs)
        return Plan(generation, config.sigma * schedules.factor(config.sigma_schedule, generation), members)

    def shape(self, feedback: Feedback) -> tuple[float, ...]:
        """Shape the weighted sum of the rewards, or each reward separately, into one utility per member."""
        shaping = SHAPINGS[self.config.shaping]
        if shaping is unshaped and not self.config.antithetic:
            shaping = centered
        if self.config.multi_objective_aggregation == "normalize_then_sum" and feedback.by_reward is not None:
            utilities = combine(feedback.by_reward, weights=self.reward_weights, shape=shaping)
        else:
            utilities = shaping(feedback.comparable)
        return tuple(float(z) for z in utilities)

    def balance(self, plan: Plan, utilities: tuple[float, ...]) -> tuple[float, ...]:
        """Let every subspace count alike, also if K does not divide the noise samples."""
        parts = self.config.subspaces
        sizes = Counter(pair % parts for _, pair in {(member.generation, member.pair) for member in plan.members})
        if len(set(sizes.values())) == 1:
            return utilities
        mean = sum(sizes.values()) / parts
        return tuple(z * mean / sizes[member.pair % parts] for z, member in zip(utilities, plan.members, strict=True))

    def observe(self, plan: Plan, feedback: Feedback, utilities: Sequence[float]) -> Observation:
        """Return the numbers that `decide` needs besides the utilities, see `seedtune.strategies.observation`."""
        return observe(plan, feedback, utilities)

    def decide(self, state: State, plan: Plan, utilities: tuple[float, ...], observation: Observation) -> Step:
        """Make a step by the step-size rule, or roll back after a collapse, from recorded data alone."""
        predicted, rule = state.get("predicted_gain", {}), state.get("alpha", {})
        realized = step_estimates.realized_fraction(predicted, observation, plan.sigma)
        averages = step_estimates.averaged(state.get("averages", step_estimates.NONE), observation, realized)
        guard = {} if self.guard is None else self.guard.update(state.get("guard", {}), plan, observation)
        if self.guard is not None and guard.get("collapsed"):
            back = {"averages": step_estimates.forgotten(averages), "guard": self.guard.back(guard)}
            after = _filled(alpha=self.rule.shrink(rule), **back)
            return Step(utilities, 0.0, None, after, observation, rollback_to=guard["best_at"])
        factor = schedules.factor(self.config.alpha_schedule, plan.generation)
        situation = Situation(plan.sigma, len(plan.members), observation, averages, factor)
        alpha, rule = self.rule.step(rule, situation)
        if alpha != 0.0:
            predicted = self._predicted_gain(plan, alpha, situation)
        after = _filled(averages=averages, alpha=rule, guard=guard, predicted_gain=predicted)
        moves = alpha != 0.0 and any(directions(plan.members, utilities).values())
        return Step(utilities, alpha, self._decay(plan.sigma, alpha) if moves else None, after, observation)

    def tell(self, state: State, plan: Plan, feedback: Feedback) -> Step:
        """Shape, observe and decide: the step for a generation's scores."""
        utilities = self.balance(plan, self.shape(feedback))
        return self.decide(state, plan, utilities, self.observe(plan, feedback, utilities))

    def _predicted_gain(self, plan: Plan, alpha: float, now: Situation) -> dict[str, float]:
        """Predict the step's gain, which the next generation compares with the realized one.

        Empty where more than the step moves the weights, or where a reward compares members with each other and
        therefore has the same mean for any members.
        """
        config = self.config
        if config.anchor_l2 or config.anchor_l1 or config.reward_batch != "sample":
            return {}
        if not step_estimates.informative(now.observation):
            return {}
        radius = radius_of(alpha, plan.sigma, now.observation, now.members)
        return step_estimates.predicted_gain(now.observation, radius, plan.sigma, now.averages)

    def _decay(self, sigma: float, alpha: float) -> Decay | None:
        """Return the pull; adaptive steps change α by orders of magnitude, so it follows the paper's α = σ/2 there."""
        pull = sigma / 2 if self.config.adaptive else alpha
        decay = Decay(min(1.0, pull * self.config.anchor_l2), pull * self.config.anchor_l1)
        return decay if decay.l2 or decay.l1 else None


def _filled(**state: Any) -> dict[str, Any]:
    """Drop the entries of rules with an empty state."""
    return {name: value for name, value in state.items() if value != {}}
