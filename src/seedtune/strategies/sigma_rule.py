"""σ over time: as given, or by how many members beat the centre."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from seedtune.strategies.base import Signal

State = Mapping[str, Any]


class SigmaRule(Protocol):
    """A rule for σ.  Its state is plain data."""

    def value(self, state: State) -> float:
        """σ of the next generation."""
        ...

    def next(self, state: State, signal: Signal) -> dict[str, Any]:
        """The state after a generation."""
        ...


@dataclass(frozen=True, slots=True)
class Given:
    """The σ that was asked for."""

    sigma: float

    def value(self, state: State) -> float:
        """σ."""
        return self.sigma

    def next(self, state: State, signal: Signal) -> dict[str, Any]:
        """Nothing to remember."""
        return {}


@dataclass(frozen=True, slots=True)
class SuccessRule:
    """σ grows while more than ``target`` of the members beat the centre, and shrinks while fewer do.

    σ ← σ·exp(rate·(share − target)/(1 − target)), the 1/5-th success rule (Rechenberg 1973, in the form of Kern et al.
    2004).  It stays within a factor ``range`` of where it began.
    """

    sigma: float
    target: float = 0.3
    rate: float = 0.1
    range: float = 4.0

    def value(self, state: State) -> float:
        """σ as the rule has left it."""
        return self.sigma * float(state.get("factor", 1.0))

    def next(self, state: State, signal: Signal) -> dict[str, Any]:
        """One generation's share of members that beat the centre."""
        if "better" not in signal:
            return dict(state)
        grown = math.exp(self.rate * (signal["better"] - self.target) / (1.0 - self.target))
        factor = min(max(state.get("factor", 1.0) * grown, 1.0 / self.range), self.range)
        return {"factor": float(f"{factor:.12g}")}  # the last bits of exp differ between machines
