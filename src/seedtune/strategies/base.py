"""A strategy is a pure state machine over member ids and rewards: it never sees weights.

``ask`` says which members to evaluate, ``tell`` turns their scores into coefficients and an update.  States
are plain JSON data, so that they go through the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seedtune.types import Plan, Term, Update

State = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """What ``tell`` decides: a coefficient per member, the update they make, and the next state."""

    coefficients: tuple[float, ...]
    update: Update
    state: State = field(default_factory=dict)


class Strategy(Protocol):
    """ask → evaluate → tell."""

    def initial(self) -> State:
        """The state before generation 0."""
        ...

    def ask(self, state: State, generation: int) -> Plan:
        """The members of a generation and the σ and α they are used with."""
        ...

    def tell(self, state: State, plan: Plan, scores: NDArray[np.float64]) -> Step:
        """Coefficients and update from scores (members, prompts), NaN where nothing was scored."""
        ...


def update_of(plan: Plan, coefficients: Sequence[float]) -> Update:
    """θ ← θ + (α/N) Σ zᵢ·signᵢ·ε(generationᵢ, pairᵢ): one term per noise sample, in ascending order.

    The two members of a pair share a term; terms of weight 0 are left out.  A function of the plan and the
    coefficients alone, so that a ledger can be replayed without the strategy.
    """
    scale = plan.alpha / len(plan.members)
    weights: dict[tuple[int, int], float] = {}
    for member, coefficient in zip(plan.members, coefficients, strict=True):
        place = (member.generation, member.pair)
        weights[place] = weights.get(place, 0.0) + member.sign * coefficient
    terms = (Term(*place, scale * weight) for place, weight in sorted(weights.items()) if weight != 0.0)
    return Update(plan.generation, tuple(terms))
