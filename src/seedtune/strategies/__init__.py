"""Strategies: choose the members of a generation, and turn their rewards into an update."""

from __future__ import annotations

from collections.abc import Sequence

from seedtune.config.config import Config
from seedtune.strategies.es import EvolutionStrategy
from seedtune.strategies.lookahead import LookAhead


def create(config: Config, reward_weights: Sequence[float] = (1.0,)) -> EvolutionStrategy:
    """Build the strategy of a configuration; ``reward_weights`` are the weights of the task's reward functions."""
    return (EvolutionStrategy if config.lookahead.radius is None else LookAhead)(config, reward_weights)


def populations(config: Config) -> list[int]:
    """Return the number of members of every generation of a run, including look-ahead probes."""
    probes = config.lookahead.probes
    return [probes if probes and generation % 2 == 0 else config.population for generation in range(config.generations)]
