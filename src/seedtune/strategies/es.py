"""Evolution strategies at scale (arXiv 2509.24372), with or without antithetic pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seedtune.shaping import SHAPINGS
from seedtune.strategies.base import State, Step, update_of
from seedtune.types import Member, Plan


@dataclass(frozen=True, slots=True)
class EvolutionStrategy:
    """θ ← θ + (α/N) Σ zᵢ εᵢ with constant σ and α and fresh noise every generation.

    ``antithetic`` evaluates +ε and −ε of N/2 samples; otherwise N samples once each (the paper's form).
    """

    population: int
    sigma: float
    alpha: float
    antithetic: bool = True
    shaping: str = "zscore"

    def initial(self) -> State:
        """Nothing to remember."""
        return {}

    def ask(self, state: State, generation: int) -> Plan:
        """N members of fresh noise."""
        signs = (1, -1) if self.antithetic else (1,)
        members = tuple(
            Member(generation, pair, sign) for pair in range(self.population // len(signs)) for sign in signs
        )
        return Plan(generation, self.sigma, self.alpha, members)

    def tell(self, state: State, plan: Plan, scores: NDArray[np.float64]) -> Step:
        """Shaped rewards as coefficients."""
        coefficients = tuple(float(z) for z in SHAPINGS[self.shaping](scores))
        return Step(coefficients, update_of(plan, coefficients))
