"""What completions look like, whatever a reward makes of them: cut off, empty, looping, or the centre's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedtune.types import Rollout, tokens


@dataclass(frozen=True, slots=True)
class Answers:
    """Shares of completions: cut off at the limit, empty, repeating, and equal to the centre's."""

    clipped: float
    empty: float
    repeating: float
    unchanged: float


def describe(rollouts: Sequence[Rollout], centre: Mapping[int, str]) -> Answers:
    """The shares over ``rollouts``; ``centre`` has the centre's text by prompt."""
    count = max(1, len(rollouts))
    return Answers(
        clipped=sum(r.finish == "length" for r in rollouts) / count,
        empty=sum(not r.text.strip() for r in rollouts) / count,
        repeating=sum(bool(r.text.strip()) and tokens(r).repeating for r in rollouts) / count,
        unchanged=sum(centre.get(r.prompt) == r.text for r in rollouts) / count,
    )
