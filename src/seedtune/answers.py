"""What completions look like, whatever a reward makes of them: cut off, empty, looping, or the centre's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from seedtune.types import Rollout, TokenCount

WINDOW = 64
"""Tokens at the end of a completion that are searched for repetitions: long answers return to earlier words anyway."""

SHORTEST = 12
"""Tokens below which a completion is not called repeating."""

REPEATED = 0.2
"""Share of three-token sequences that occurred before from which on a completion is called repeating."""


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


def tokens(rollout: Rollout) -> TokenCount:
    """How many tokens a completion has and whether it ends in a repetition, whoever counted."""
    if rollout.counted is not None:
        return rollout.counted
    return TokenCount(len(rollout.token_ids), repeats(rollout.token_ids))


def length(rollout: Rollout) -> int:
    """How many tokens a completion has."""
    return len(rollout.token_ids) if rollout.counted is None else rollout.counted.count


def repeats(tokens: Sequence[object]) -> bool:
    """Whether over a fifth of the three-token sequences in the last 64 tokens (or words) occurred before in them."""
    tail = tokens[-WINDOW:]
    if len(tail) < SHORTEST:
        return False
    triples = list(zip(tail, tail[1:], tail[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) > REPEATED
