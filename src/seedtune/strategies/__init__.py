"""Strategies: choose the members of a generation, and turn their rewards into an update."""

from __future__ import annotations

import math
from collections.abc import Sequence

from seedtune.config.config import Config
from seedtune.strategies import step_size
from seedtune.strategies.base import Feedback, Strategy
from seedtune.strategies.collapse_guard import Guard
from seedtune.strategies.es import EvolutionStrategy, FeedbackShaping
from seedtune.strategies.lookahead import LookAhead
from seedtune.strategies.shaping import SHAPINGS, combine
from seedtune.types import Decay


def create(config: Config, reward_weights: Sequence[float] = (1.0,)) -> Strategy:
    """Build the strategy of a configuration; ``reward_weights`` are the weights of the task's reward functions."""
    plain = EvolutionStrategy(
        shaping=_shape(config, reward_weights),
        population=config.population,
        sigma=config.sigma,
        alpha=_step_size(config),
        antithetic=config.antithetic,
        reuse=config.noise_reuse,
        sigma_schedule=config.sigma_schedule,
        alpha_schedule=config.alpha_schedule,
        decay=Decay(config.anchor_l2, config.anchor_l1),
        steady_pull=config.adaptive,
        guard=Guard() if config.guarded else None,
        compares=config.reward_batch == "sample" and not (config.anchor_l2 or config.anchor_l1),
    )
    look = config.lookahead
    if look.kind == "none":
        return plain
    assert look.radius is not None
    if look.kind == "essam":
        return LookAhead(plain, look.radius * _apart(config))
    return LookAhead(plain, look.radius, look.probes)


def _shape(config: Config, weights: Sequence[float]) -> FeedbackShaping:
    """Build the shaping: of the weighted sum of rewards, or of each reward separately."""
    shaping, apart = SHAPINGS[config.shaping], config.multi_objective_aggregation == "normalize_then_sum"

    def shape(feedback: Feedback) -> tuple[float, ...]:
        if apart and feedback.by_reward is not None:
            z = combine(feedback.by_reward, weights=weights, shape=shaping)
        else:
            z = shaping(feedback.comparable)
        return tuple(float(c) for c in z)

    return shape


def populations(config: Config) -> list[int]:
    """Return the number of members of every generation of a run, including look-ahead probes."""
    probes = config.lookahead.probes if config.lookahead.kind == "essam_f" else None
    return [probes if probes and generation % 2 == 0 else config.population for generation in range(config.generations)]


def _step_size(config: Config) -> step_size.StepSize:
    if config.adaptive:
        longest = {} if config.max_step_ratio is None else {"longest": config.max_step_ratio}
        return step_size.Adaptive(start=config.alpha, **longest)
    return step_size.ConstantAlpha(config.step * _apart(config))


def _apart(config: Config) -> float:
    """Return √K: noise in K subspaces includes it, and CoPES's step for plain noise, (α/N_k) Σ z ε, has √K more."""
    return math.sqrt(config.subspaces)
