"""What strategies read and return: scores, the step that follows from them, and the shape of rules with state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.strategies.evidence import NOTHING, Evidence, Rewards, agreement, cost
from seedtune.strategies.shaping import comparable, member_rewards
from seedtune.types import Decay, Member, Plan, Term, Update

State = Mapping[str, Any]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Feedback:
    """Scores of a generation, NaN where nothing was scored."""

    scores: Scores
    """(members, prompts), in the order of the plan's members."""

    unperturbed: Scores | None = None
    """(prompts,): the unperturbed model's scores, if it was evaluated too."""

    by_reward: Scores | None = None
    """(reward functions, members, prompts), unweighted, if there are several."""

    watched: Rewards = ()
    """Scores of the unperturbed model on the watched prompts (see `seedtune.strategies.watch`), if it is time."""

    groups: Sequence[int] = ()
    """Generation whose prompts each member answered.  Empty: all answered the same prompts."""

    @property
    def rewards(self) -> Scores:
        """(members,): each member's mean score over its prompts."""
        return member_rewards(self.scores, self.groups)

    @property
    def comparable(self) -> Scores:
        """Scores as shapings compare them, see `seedtune.strategies.shaping.comparable`."""
        return comparable(self.scores, self.groups)

    def evidence(self, plan: Plan) -> Evidence:
        """What these scores say about how far to step."""
        scored = np.empty(0) if self.unperturbed is None else self.unperturbed[~np.isnan(self.unperturbed)]
        costs = cost(self.rewards.tolist(), float(scored.mean()) if scored.size else None)
        return Evidence(agreement(plan, self.scores, self.groups), costs, self.watched)


@dataclass(frozen=True, slots=True)
class Step:
    """Result of a generation: a coefficient per member, the step size α, the pull to θ₀, and the next state.

    `update_of` makes the update from them.  With ``rollback_to`` the weights return to their values after that many
    generations instead.
    """

    coefficients: tuple[float, ...]
    alpha: float
    decay: Decay | None = None
    state: State = field(default_factory=dict)
    rollback_to: int | None = None
    evidence: Evidence = NOTHING


class StatefulRule(ABC):
    """A rule whose state is plain JSON data, recorded in the ledger; its shape is that of optax's transformations."""

    def init(self) -> State:
        """Return the state before the first generation."""
        return {}

    @abstractmethod
    def update(self, state: State, *args: Any, **kwargs: Any) -> Any:
        """Return the state after a generation; a rule that decides something returns (decision, state)."""

    @abstractmethod
    def rolled_back(self, state: State) -> State:
        """Return the state after the weights have returned to those of an earlier generation."""


def directions(members: Sequence[Member], values: Sequence[float]) -> dict[tuple[int, int], float]:
    """Σ sign·value over the members of every noise sample (generation, pair), in ascending order of samples."""
    sums: dict[tuple[int, int], float] = {}
    for member, value in zip(members, values, strict=True):
        place = (member.generation, member.pair)
        sums[place] = sums.get(place, 0.0) + member.sign * value
    return dict(sorted(sums.items()))


def update_of(plan: Plan, coefficients: Sequence[float], alpha: float, decay: Decay | None = None) -> Update:
    """θ ← θ + (α/N) Σ zᵢ·signᵢ·ε(generationᵢ, pairᵢ): one term per noise sample, in ascending order.

    The two members of a pair share a term; terms of weight 0 are left out.  A function of the plan, the
    coefficients, α and the decay alone, so that a ledger can be replayed without the strategy.
    """
    scale = alpha / len(plan.members)
    weights = directions(plan.members, coefficients)
    terms = (Term(*place, scale * weight) for place, weight in weights.items() if scale * weight != 0.0)
    return Update(plan.generation, tuple(terms), decay)
