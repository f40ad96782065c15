"""Evolution strategies at scale (arXiv 2509.24372), with or without antithetic pairs.

Also schedules of σ and α, the anchor to θ₀, and rollback after a collapse.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from seedtune.config.config import Config
from seedtune.strategies import schedules, step_estimates
from seedtune.strategies.base import Feedback, Observation, Situation, State, StatefulRule, Step, directions
from seedtune.strategies.collapse_guard import Guard
from seedtune.strategies.observation import observe
from seedtune.strategies.shaping import SHAPINGS, centered, combine, unshaped
from seedtune.strategies.step_size import Adaptive, ConstantAlpha
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
        # Noise in K subspaces includes √K, and CoPES's step for plain noise, (α/N_k) Σ z ε, has √K more.
        self.apart = math.sqrt(config.subspaces)
        limit = {} if config.max_step_ratio is None else {"max_step_ratio": config.max_step_ratio}
        adaptive, fixed = Adaptive(start=config.alpha, **limit), ConstantAlpha(config.step * self.apart)
        comparable = not (config.anchor_l2 or config.anchor_l1) and config.reward_batch == "sample"
        self.rules: dict[str, StatefulRule] = {
            "averages": step_estimates.RunningAverages(),
            "alpha": adaptive if config.adaptive else fixed,
            "predicted_gain": step_estimates.PredictedGain(comparable),
        }
        if config.guarded:
            self.rules["guard"] = Guard(unscored=3 if config.uses_likelihood else None)

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
        rules, states = self.rules, {name: state.get(name, rule.init()) for name, rule in self.rules.items()}
        rollback_to, alpha, decay = None, 0.0, None
        realized = step_estimates.realized_fraction(states["predicted_gain"], observation, plan.sigma)
        states["averages"] = rules["averages"].update(states["averages"], observation, realized)
        if "guard" in rules:
            rollback_to, states["guard"] = rules["guard"].update(states["guard"], plan, observation)
        if rollback_to is None:
            factor = schedules.factor(self.config.alpha_schedule, plan.generation)
            now = Situation(plan.sigma, len(plan.members), observation, states["averages"], factor)
            alpha, states["alpha"] = rules["alpha"].update(states["alpha"], now)
            states["predicted_gain"] = rules["predicted_gain"].update(states["predicted_gain"], now, alpha)
            if alpha != 0.0 and any(directions(plan.members, utilities).values()):
                decay = self._decay(plan.sigma, alpha)
        else:
            states = {name: rule.rolled_back(states[name]) for name, rule in rules.items()}
        return Step(utilities, alpha, decay, {n: s for n, s in states.items() if s}, observation, rollback_to)

    def tell(self, state: State, plan: Plan, feedback: Feedback) -> Step:
        """Shape, observe and decide: the step for a generation's scores."""
        utilities = self.balance(plan, self.shape(feedback))
        return self.decide(state, plan, utilities, self.observe(plan, feedback, utilities))

    def _decay(self, sigma: float, alpha: float) -> Decay | None:
        """Return the pull; adaptive steps change α by orders of magnitude, so it follows the paper's α = σ/2 there."""
        pull = sigma / 2 if self.config.adaptive else alpha
        decay = Decay(min(1.0, pull * self.config.anchor_l2), pull * self.config.anchor_l1)
        return decay if decay.l2 or decay.l1 else None
