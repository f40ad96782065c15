"""Strategies decide which members to evaluate and what to make of their rewards."""

from __future__ import annotations

from seedtune.config import Config
from seedtune.shaping import SHAPINGS
from seedtune.strategies import sigma, stepsize
from seedtune.strategies.base import Feedback, Strategy
from seedtune.strategies.es import EvolutionStrategy, Shape
from seedtune.strategies.guard import Guard
from seedtune.strategies.lookahead import LookAhead
from seedtune.strategies.moments import Memory
from seedtune.strategies.population import Constant, Growing, PopulationSize, Scheduled
from seedtune.types import Decay


def create(config: Config) -> Strategy:
    """The strategy a configuration asks for."""
    plain = EvolutionStrategy(
        shaping=_shape(config),
        population=_population(config),
        sigma=sigma.SuccessRule(config.sigma) if config.sigma_rule == "success" else sigma.Given(config.sigma),
        alpha=_step_size(config),
        antithetic=config.antithetic,
        reuse=config.noise_reuse,
        decay=Decay(config.decay_l2, config.decay_l1),
        guard=Guard() if config.guarded else None,
    )
    look = config.lookahead
    if look.kind == "none":
        return plain
    return LookAhead(plain, look.radius, look.probes if look.kind == "essam_f" else 0)


def memory(config: Config) -> Memory:
    """What past updates have to do with the next."""
    chosen = config.moments
    return Memory(chosen.momentum, chosen.second, chosen.epsilon, chosen.window)


def _shape(config: Config) -> Shape:
    def shape(feedback: Feedback) -> tuple[float, ...]:
        return tuple(float(z) for z in SHAPINGS[config.shaping](feedback.scores))

    return shape


def _population(config: Config) -> PopulationSize:
    growth = config.population_growth
    if growth.limit:
        return Growing(config.population, growth.limit, growth.below, growth.patience)
    if config.population_schedule:
        return Scheduled(config.population, config.population_schedule)
    return Constant(config.population)


def _step_size(config: Config) -> stepsize.StepSize:
    if config.adaptive:
        return stepsize.Adaptive(config.longest_step, config.alpha)
    return stepsize.Given(config.step)
