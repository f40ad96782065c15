"""The form of the states that strategies read back from a ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from seedtune.config.foreign_data import Finite, GenerationCount, conform
from seedtune.strategies.step_size import MEMORY, WORST


class _StepSize(TypedDict, total=False):
    factor: Annotated[Finite, Field(gt=0.0, le=1.0)]
    seen: Annotated[int, Field(ge=1, le=MEMORY)]
    agreement: Annotated[Finite, Field(ge=WORST, le=1.0)]
    cost: Annotated[Finite, Field(ge=-10.0, le=10.0)]


class _Watch(TypedDict):
    best: list[Finite | None]
    best_at: GenerationCount


_Term = Annotated[list[Finite], Field(min_length=3, max_length=3)]


class _State(TypedDict, total=False):
    step_size: _StepSize
    watch: _Watch
    down: list[_Term]


def check_state(state: Mapping[str, Any]) -> None:
    """Raise ValueError unless a recorded state is such as strategies make."""
    conform(dict(state), _State)
