"""The form of the states and observations that strategies read back from a ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from seedtune.config.foreign_data import Count, Finite, GenerationCount, conform

Positive = Annotated[Finite, Field(gt=0.0)]
NotNegative = Annotated[Finite, Field(ge=0.0)]


class _Observation(TypedDict):
    """See `seedtune.strategies.observation`."""

    reward: Finite
    spread: NotNegative
    length: NotNegative
    slope: Finite
    power: Finite
    shared: Finite
    share: Finite
    scored: NotRequired[NotNegative]
    shared_error: NotRequired[NotNegative]
    reward_error: NotRequired[NotNegative]
    curvature: NotRequired[Finite]
    curvature_error: NotRequired[NotNegative]
    success_rate: NotRequired[Finite]


class _Averages(TypedDict):
    """See `seedtune.strategies.step_estimates.RunningAverages`."""

    power: Finite
    shared: Finite
    curvature: Finite
    success_rate: Finite
    share: Finite
    seen: Count
    shared_error: NotRequired[NotNegative]
    curvature_error: NotRequired[NotNegative]
    realized_fraction: NotRequired[Finite]
    realized_precision: NotRequired[NotNegative]
    usual: NotRequired[NotNegative]


class _PredictedGain(TypedDict):
    gain: Positive
    cost: Finite
    reward: Finite
    error: NotNegative
    sigma: Positive


class _Watching(TypedDict):
    seen: Annotated[int, Field(ge=1, lt=2**32)]
    level: Finite
    last: Finite
    noise: NotNegative
    best: Finite
    best_at: GenerationCount
    sigma: NotRequired[Positive]
    scored: NotRequired[NotNegative]
    missed: NotRequired[Count]


_Term = Annotated[list[Finite], Field(min_length=3, max_length=3)]


class _State(TypedDict, total=False):
    averages: _Averages
    alpha: dict[Literal["factor", "step_ratio"], Positive]
    guard: dict[Literal["missed"], Count] | _Watching
    predicted_gain: _PredictedGain
    down: list[_Term]


def check_recorded(state: Mapping[str, Any], observation: Mapping[str, Any]) -> None:
    """Raise ValueError unless a recorded state and observation are such as strategies make."""
    conform(dict(state), _State)
    if observation:
        conform(dict(observation), _Observation)
