"""Strategies decide which members to evaluate and what to make of their rewards."""

from __future__ import annotations

from seedtune.config import Config
from seedtune.strategies.base import Strategy
from seedtune.strategies.es import EvolutionStrategy


def create(config: Config) -> Strategy:
    """The strategy a configuration asks for."""
    return EvolutionStrategy(
        population=config.population,
        sigma=config.sigma,
        alpha=config.step,
        antithetic=config.antithetic,
        shaping=config.shaping,
    )
