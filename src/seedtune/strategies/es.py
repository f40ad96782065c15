"""Evolution strategies at scale (arXiv 2509.24372), with or without antithetic pairs.

Also schedules of σ and α, the anchor to θ₀, and the way back after a fall.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.strategies import schedules
from seedtune.strategies.base import Feedback, State, StatefulRule, Step
from seedtune.strategies.evidence import NOTHING, Evidence
from seedtune.strategies.shaping import SHAPINGS, centered, combine, unshaped
from seedtune.strategies.step_size import StepSize
from seedtune.strategies.watch import Watch, interval
from seedtune.types import Decay, Member, Plan


class EvolutionStrategy:
    """θ ← θ + (α/N) Σ zᵢ εᵢ, followed by the anchor's pull towards θ₀.

    ``antithetic`` evaluates +ε and −ε of N/2 noise samples; otherwise N samples once each (the paper's form).  Noise is
    drawn anew every ``noise_reuse`` generations (EGGROLL, arXiv 2511.16652, keeps it for 4 with fresh prompts).

    A strategy is a pure state machine over member ids and rewards and never sees weights.  ``ask`` returns the members
    to evaluate.  ``tell`` turns their scores into a step in calls, so that a ledger can be checked without scores:
    ``shape`` and ``balance`` make utilities, and ``decide`` a step from these and the watched rewards.  States ({}
    before generation 0) are plain JSON data, recorded in the ledger.

    Raises ConfigError without σ, which `seedtune.ESTrainer` measures at the start of a run.
    """

    def __init__(self, config: Config, reward_weights: Sequence[float] = (1.0,)) -> None:
        if config.sigma is None:
            raise ConfigError("sigma is not known: a run measures it with its model. Give sigma, say 0.001.")
        self.config, self.reward_weights, self.sigma = config, reward_weights, config.sigma
        # Noise in K subspaces includes √K, and CoPES's step for plain noise, (α/N_k) Σ z ε, has √K more.
        self.apart = math.sqrt(config.subspaces)
        self.step_size = StepSize(config.alpha and config.alpha * self.apart)
        self.watch = Watch(scored_by_engine=config.uses_likelihood) if config.rolls_back else None
        each = config.population * config.prompts_per_generation
        self.rules: dict[str, StatefulRule] = {"step_size": self.step_size}
        if self.watch is not None:
            self.rules["watch"] = self.watch
        self.interval = interval(each)

    def ask(self, state: State, generation: int) -> Plan:
        """Return a generation's plan: its members, with fresh or reused noise, σ, and the shift that they perturb."""
        config, signs = self.config, (1, -1) if self.config.antithetic else (1,)
        drawn = generation - generation % config.noise_reuse
        pairs = range(config.population // len(signs))
        members = tuple(Member(drawn, pair, sign) for pair in pairs for sign in signs)
        return Plan(generation, self.sigma * schedules.factor(config.sigma_schedule, generation), members)

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

    def watches(self, plan: Plan) -> bool:
        """Return whether the watched prompts are to be answered along with this generation."""
        return self.watch is not None and plan.generation % self.interval == 0

    def decide(self, state: State, plan: Plan, utilities: tuple[float, ...], evidence: Evidence = NOTHING) -> Step:
        """Make a step by the step-size rule, or go back after a fall, from recorded data alone."""
        states = {name: state.get(name, rule.init()) for name, rule in self.rules.items()}
        rollback_to, alpha, decay = None, 0.0, None
        if self.watch is not None:
            rollback_to, states["watch"] = self.watch.update(states["watch"], plan.generation, evidence.watched)
        if rollback_to is None:
            factor = schedules.factor(self.config.alpha_schedule, plan.generation)
            alpha, states["step_size"] = self.step_size.update(states["step_size"], plan, utilities, evidence, factor)
            decay = self._decay(plan.sigma, alpha) if alpha else None
        else:
            states = {name: rule.rolled_back(states[name]) for name, rule in self.rules.items()}
        kept = {name: state for name, state in states.items() if state}
        return Step(utilities, alpha, decay, kept, rollback_to, evidence)

    def tell(self, state: State, plan: Plan, feedback: Feedback) -> Step:
        """Shape and decide: the step for a generation's scores."""
        utilities = self.balance(plan, self.shape(feedback))
        return self.decide(state, plan, utilities, feedback.evidence(plan))

    def _decay(self, sigma: float, alpha: float) -> Decay | None:
        """Return the pull; without a given α, which then varies with the rewards, it is that of the paper's α = σ/2."""
        pull = sigma / 2 if self.config.alpha is None else alpha
        decay = Decay(min(1.0, pull * self.config.anchor_l2), pull * self.config.anchor_l1)
        return decay if decay.l2 or decay.l1 else None
