"""What one call of a reward function holds: fixed by the evaluation, whatever the order in which rollouts finish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Batching = Literal["sample", "chunk", "prompt", "all"]
"""``sample``: one completion; ``chunk``: `CHUNK` neighbours; ``prompt``: a prompt's completions; ``all``: all."""

CHUNK = 32
"""Completions of a call of a function that runs in this process by its own wish: enough for a batch of a model or for
requests at the same time."""


def batches(how: Batching, prompts: Sequence[int]) -> list[tuple[int, ...]]:
    """The places (0, 1, …: members, then prompts, then samples) of each call; ``prompts`` has a prompt per place."""
    places = range(len(prompts))
    if how == "prompt":
        groups: dict[int, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(place)
        return [tuple(group) for group in groups.values()]
    size = {"sample": 1, "chunk": CHUNK, "all": max(1, len(prompts))}[how]
    return [tuple(places[first : first + size]) for first in range(0, len(prompts), size)]
