"""What completions look like, whatever a reward makes of them: cut off, empty, looping, or unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedtune.types import Rollout, tokens


@dataclass(frozen=True, slots=True)
class CompletionStats:
    """Shares of completions: cut off at the limit, empty, repeating, and equal to the unperturbed model's."""

    clipped: float
    empty: float
    repeating: float
    unchanged: float


def describe(rollouts: Sequence[Rollout], unperturbed: Mapping[int, str]) -> CompletionStats:
    """The shares over ``rollouts``; ``unperturbed`` has the unperturbed model's text by prompt."""
    count = max(1, len(rollouts))
    return CompletionStats(
        clipped=sum(r.finish == "length" for r in rollouts) / count,
        empty=sum(not r.text.strip() for r in rollouts) / count,
        repeating=sum(bool(r.text.strip()) and tokens(r).repeating for r in rollouts) / count,
        unchanged=sum(unperturbed.get(r.prompt) == r.text for r in rollouts) / count,
    )
