"""A strategy is a pure state machine over member ids and rewards: it never sees weights.

``ask`` says which members to evaluate.  ``tell`` turns what came back into an update in three steps, so that a
ledger can be checked without scores: ``shape`` makes utilities, ``observe`` a few numbers about the generation
(the observation), and ``decide`` an update from these two alone.  States and observations are plain JSON data, so that
they go through the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seedtune.strategies.shaping import comparable, member_rewards
from seedtune.types import Decay, Member, Plan, Term, Update

State = Mapping[str, Any]
Observation = Mapping[str, float]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a generation came back with, NaN where nothing was scored."""

    scores: Scores
    """(members, prompts), in the order of the plan's members."""

    unperturbed: Scores | None = None
    """(prompts,): the unperturbed model's scores, if it answered, too."""

    share: float = 0.0
    """Share of the training prompts that these are."""

    by_reward: Scores | None = None
    """(reward functions, members, prompts), unweighted, if there are several."""

    groups: Sequence[int] = ()
    """Whose prompts each member answered: the generation it was asked for in.  None: all answered the same."""

    @property
    def rewards(self) -> Scores:
        """(members,): each one's mean over its own prompts."""
        return member_rewards(self.scores, self.groups)

    @property
    def comparable(self) -> Scores:
        """What tells members apart and nothing else, see `seedtune.strategies.shaping.comparable`."""
        return comparable(self.scores, self.groups)


@dataclass(frozen=True, slots=True)
class Step:
    """What ``tell`` decides: a coefficient per member, α as it was used, the pull to θ₀, and the next state.

    `update_of` makes the update of them.  With ``rollback_to`` the weights go back to what they were after that many
    generations instead.
    """

    coefficients: tuple[float, ...]
    alpha: float
    decay: Decay | None = None
    state: State = field(default_factory=dict)
    observation: Observation = field(default_factory=dict)
    rollback_to: int | None = None


class Strategy(Protocol):
    """ask → evaluate → tell."""

    def initial(self) -> State:
        """The state before generation 0."""
        ...

    def ask(self, state: State, generation: int) -> Plan:
        """The members of a generation, the σ and α they are used with, and where they stand."""
        ...

    def shape(self, feedback: Feedback) -> tuple[float, ...]:
        """A utility per member: its shaped reward."""
        ...

    def observe(self, plan: Plan, feedback: Feedback, utilities: Sequence[float]) -> Observation:
        """What the strategy wants to know about a generation besides utilities."""
        ...

    def decide(self, state: State, plan: Plan, coefficients: tuple[float, ...], observation: Observation) -> Step:
        """The update, from what the ledger records."""
        ...


def tell(strategy: Strategy, state: State, plan: Plan, feedback: Feedback) -> Step:
    """Utilities, observation and update from what came back."""
    utilities = strategy.shape(feedback)
    return strategy.decide(state, plan, utilities, strategy.observe(plan, feedback, utilities))


Direction = tuple[int, int]
"""(generation, pair) of a noise sample."""


def directions(members: Sequence[Member], values: Sequence[float]) -> dict[Direction, float]:
    """Σ sign·value over the members of every noise sample, in ascending order of samples."""
    sums: dict[Direction, float] = {}
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
