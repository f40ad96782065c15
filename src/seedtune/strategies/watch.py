"""Watch: the unperturbed model's rewards on a few fixed prompts, and the way back when they have fallen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from seedtune.strategies.base import State, StatefulRule
from seedtune.strategies.evidence import Rewards

WATCHED = 64
"""Most prompts that are watched."""

COST = 0.05
"""Most rollouts for watching, as a share of those of the members."""

FALLEN = 3.0
"""A fall is this many standard errors below the best: that one is the best of several, so it was lucky, too."""


FEWEST = 8
"""Fewest prompts whose spread says for sure how sure their mean is."""

BETTER = 1.0
"""A model better than the base model is this many standard errors above it."""


class MeanChange(NamedTuple):
    """A mean difference of paired rewards, its standard error (0 for a single prompt), and the number of prompts."""

    mean: float
    error: float
    prompts: int

    @property
    def fallen(self) -> bool:
        """Whether it is a fall for sure."""
        return self.prompts >= FEWEST and self.mean < -FALLEN * self.error


def change(before: Rewards, now: Rewards) -> MeanChange:
    """Compare rewards prompt by prompt, where both are scored."""
    apart = [b - a for a, b in zip(before, now, strict=True) if a is not None and b is not None]
    mean = math.fsum(apart) / max(1, len(apart))
    variance = math.fsum((each - mean) ** 2 for each in apart) / max(1, len(apart) - 1)
    return MeanChange(mean, math.sqrt(variance / max(1, len(apart))), len(apart))


def interval(rollouts: int) -> int:
    """Generations between two looks that cost `COST` of the members' ``rollouts`` (prompts answered) at most."""
    return max(1, math.ceil(WATCHED / (COST * rollouts)))


@dataclass(frozen=True, slots=True)
class Watch(StatefulRule):
    """Compare the watched prompts' rewards with those of the best generation so far, prompt by prompt.

    A fall of more than `FALLEN` standard errors of the mean difference takes the run back to the best generation.  With
    ``scored_by_engine`` (log-probabilities) rewards are missing only if the model is broken, which is a fall, too.
    """

    scored_by_engine: bool = False

    def update(self, state: State, generation: int, rewards: Rewards) -> tuple[int | None, State]:
        """Return the generation to roll back to, None without a fall, and the state; ``rewards`` may be empty."""
        known = [reward for reward in rewards if reward is not None]
        if not known:
            broken = bool(rewards) and bool(state) and self.scored_by_engine
            return (state["best_at"] if broken else None), state
        now = {"best": list(rewards), "best_at": generation}
        if not state or len(state["best"]) != len(rewards):  # a resumed run may hold other prompts out
            return None, now
        found = change(state["best"], rewards)
        if found.mean > 0.0:
            return None, now
        return (state["best_at"] if found.fallen else None), state

    def rolled_back(self, state: State) -> State:
        """Keep the best generation, which is the present one."""
        return state


def best(rewards: Mapping[int, Rewards]) -> int:
    """Return the generation with the highest mean reward on the same prompts, of equal ones the latest."""
    last = max(rewards)
    gains = {generation: change(rewards[last], found).mean for generation, found in rewards.items()}
    return max(gains, key=lambda generation: (gains[generation], generation))


def chosen(rewards: Mapping[int, Rewards]) -> int:
    """Return the generation to hand out: the best, or the base model, 0, if that one is not clearly better.

    Clearly better is by more than `BETTER` standard errors of the paired difference: the best of several was lucky, and
    on other prompts a model that is only as good may well be worse.
    """
    found = best(rewards)
    gain = change(rewards[0], rewards[found]) if 0 in rewards else None
    return 0 if gain is not None and gain.prompts and gain.mean <= BETTER * gain.error else found
