"""Completion statistics independent of the reward: truncated, empty, repeating, or unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedtune.types import Rollout, tokens


@dataclass(frozen=True, slots=True)
class CompletionStats:
    """Shares of completions: truncated at the limit, empty, repeating, and equal to the unperturbed model's."""

    clipped: float
    empty: float
    repeating: float
    unchanged: float


def describe(rollouts: Sequence[Rollout], unperturbed: Mapping[int, str]) -> CompletionStats:
    """Return the shares over ``rollouts``; ``unperturbed`` maps a prompt index to the unperturbed model's text."""
    count = max(1, len(rollouts))
    return CompletionStats(
        clipped=sum(r.finish == "length" for r in rollouts) / count,
        empty=sum(not r.text.strip() for r in rollouts) / count,
        repeating=sum(bool(r.text.strip()) and tokens(r).repeating for r in rollouts) / count,
        unchanged=sum(unperturbed.get(r.prompt) == r.text for r in rollouts) / count,
    )
