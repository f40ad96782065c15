"""Strategies: choose the members of a generation, and turn their rewards into an update."""

from __future__ import annotations

from collections.abc import Sequence

from seedtune.config.config import Config
from seedtune.strategies.es import EvolutionStrategy
from seedtune.strategies.lookahead import LookAhead


def create(config: Config, reward_weights: Sequence[float] = (1.0,)) -> EvolutionStrategy:
    """Build the strategy of a configuration; ``reward_weights`` are the weights of the task's reward functions."""
    return (EvolutionStrategy if config.lookahead.radius is None else LookAhead)(config, reward_weights)


def populations(config: Config) -> dict[int, int]:
    """Return the numbers of members of a run's generations, including look-ahead probes: size → how many generations.

    In the order of their first generation.
    """
    population, probes, steps = config.population, config.lookahead.probes, config.generations
    if probes in (None, population):
        return {population: steps}
    return {size: count for size, count in ((probes, steps - steps // 2), (population, steps // 2)) if count}
