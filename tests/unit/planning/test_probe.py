"""When completions count as cut off, empty, repeating or unchanged."""

from __future__ import annotations

import pytest

from seedtune.planning.probe import CompletionStats, describe
from seedtune.types import UNPERTURBED, Rollout, repeats


def rollout(prompt: int, text: str, tokens=(1,), finish="stop") -> Rollout:
    return Rollout(0, UNPERTURBED, prompt, 0, text, tuple(tokens), 3, finish)


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([*range(40)], False),
        ([*range(20), *[5, 6] * 10], True),
        ([*range(100), *[9] * 40], True),
        ([7] * 11, False),
        ([7] * 12, True),
        ([*[1, 2, 3] * 30, *range(64)], False),
    ],
)
def test_repeating_is_a_matter_of_the_last_tokens(tokens, loops):
    assert repeats(tokens) is loops


def test_shares_are_of_all_completions():
    found = describe(
        [
            rollout(0, "as before"),
            rollout(1, " \n", [7] * 20),
            rollout(0, "loop loop", [7] * 20, "length"),
            rollout(1, "other"),
        ],
        {0: "as before", 1: "the current model's"},
    )
    assert found == CompletionStats(clipped=0.25, empty=0.25, repeating=0.25, unchanged=0.25)
