"""Group completions into reward calls: fixed per evaluation, independent of the order in which rollouts finish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Batching = Literal["sample", "chunk", "prompt", "all"]
"""Completions per call.

``sample``: one; ``chunk``: `CHUNK` neighbours; ``prompt``: those of one prompt; ``all``: the whole evaluation.
"""

CHUNK = 32
"""Completions per call of an inline reward: enough for one model batch or for concurrent requests."""


def batches(how: Batching, prompts: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the completion indices of each call.

    Indices 0, 1, … run over members, then prompts, then samples; ``prompts[i]`` is the prompt of completion i.
    """
    places = range(len(prompts))
    if how == "prompt":
        groups: dict[int, list[int]] = {}
        for place, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(place)
        return [tuple(group) for group in groups.values()]
    size = {"sample": 1, "chunk": CHUNK, "all": max(1, len(prompts))}[how]
    return [tuple(places[first : first + size]) for first in range(0, len(prompts), size)]
