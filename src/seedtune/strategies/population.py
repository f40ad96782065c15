"""How many members a generation has: always the same, or more where the signal drowns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from seedtune.strategies.step_estimates import Averages, agreement

State = Mapping[str, Any]


class PopulationSize(Protocol):
    """A rule for N.  Its state is plain data."""

    def members(self, state: State, generation: int) -> int:
        """N of a generation."""
        ...

    def next(self, state: State, averages: Averages) -> dict[str, Any]:
        """The state after a generation."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """N members, always."""

    count: int

    def members(self, state: State, generation: int) -> int:
        """N."""
        return self.count

    def next(self, state: State, averages: Averages) -> dict[str, Any]:
        """Nothing to remember."""
        return {}


@dataclass(frozen=True, slots=True)
class Growing:
    """N doubles, up to ``limit``, when less than ``below`` of what members measure agrees between prompts.

    An update's error falls as 1/√N (the drift of arXiv 2605.30148), so a weak signal needs more members, as in
    population-size adaptation (Nishida and Akimoto, PSA-CMA-ES, 2018).  Decided after every ``patience`` generations.
    """

    count: int
    limit: int
    below: float
    patience: int

    def members(self, state: State, generation: int) -> int:
        """N as it has grown."""
        return int(state.get("members", self.count))

    def next(self, state: State, averages: Averages) -> dict[str, Any]:
        """Twice as many where the signal is weak."""
        members, waited = self.members(state, 0), state.get("waited", 0) + 1
        if waited < self.patience:
            return {"members": members, "waited": waited}
        weak = averages["seen"] > 0 and agreement(averages) < self.below
        return {"members": min(self.limit, 2 * members) if weak else members, "waited": 0}
