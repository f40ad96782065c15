"""The header and the records of a ledger: plain data, float for float as in the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, NotRequired

from pydantic import BeforeValidator, Field
from typing_extensions import TypedDict

from seedtune.config.foreign_data import Count, Finite, GenerationCount, conform
from seedtune.strategies.evidence import Evidence, cost
from seedtune.strategies.sigma_rule import Measurement
from seedtune.types import Decay, Member, Plan, Shift, Term

FORMAT = 1

_Pair = Annotated[list[Finite], Field(min_length=2, max_length=2)]


class _Measured(TypedDict):
    measured: list[_Pair]


def _measurements(line: Any) -> tuple[Measurement, ...]:
    """Return measurements from JSON data, pairs of σ and loss."""
    return tuple(Measurement(sigma, loss) for sigma, loss in conform({"measured": line}, _Measured)["measured"])


@dataclass(frozen=True, slots=True)
class Header:
    """The starting point of a run: everything later is a function of it.  The fields are those of the first line."""

    seedtune: str
    """Version of seedtune that began the run."""

    format: int = field(default=FORMAT, kw_only=True)
    noise: str
    model: str
    data: str
    prompts: str
    """Digest of the tokens of training prompts, as the model reads them; ``data`` is that of all the training data."""

    resolved_weights_dtype: str
    arithmetic: Mapping[str, Any]
    """How the first rewards were computed: see `seedtune.engines.recorded_arithmetic`."""

    base_fingerprint: str
    tokenizer_fingerprint: str
    config: Mapping[str, Any]
    measured: Annotated[tuple[Measurement, ...], BeforeValidator(_measurements)] = ()
    """How the run found its σ (`seedtune.strategies.sigma_rule`); empty: it was given."""

    sources: Mapping[str, Any] = field(default_factory=dict)
    """Where the user's own data, rewards and code are, if there are any, so that the ledger alone can be resumed."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Header:
        """Build the header from JSON data.  Raises ValueError if it is of another form."""
        return conform(data, cls)

    def to_json(self) -> dict[str, Any]:
        """Return the header as JSON data."""
        return {name: value for name, value in asdict(self).items() if name not in ("sources", "measured") or value}


@dataclass(frozen=True, slots=True)
class Record:
    """One generation, with enough data to apply its update again, bit for bit."""

    plan: Plan
    alpha: float
    rewards: tuple[float, ...]
    coefficients: tuple[float, ...]
    prompts: tuple[int, ...]
    reward_unperturbed: float | None
    tokens: Mapping[str, int]
    state: Mapping[str, Any] = field(default_factory=dict)
    agreement: float | None = None
    """Part of the differences between members that holds on other prompts (`seedtune.strategies.agreement`)."""

    watched: tuple[float | None, ...] = ()
    """Rewards of the watched prompts before the update, None where nothing was scored; empty: it was not time."""

    decay: Decay | None = None
    rollback_to: int | None = None
    """Roll back to the weights after this many generations, instead of applying an update."""

    @property
    def evidence(self) -> Evidence:
        """What the generation said about how far to step."""
        return Evidence(self.agreement, cost(self.rewards, self.reward_unperturbed), self.watched)

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON data, with member labels, and NaN as null; last what few generations have."""
        plan = self.plan
        some = {
            "agreement": self.agreement,
            "watched": self.watched or None,
            "shift": plan.shift and asdict(plan.shift),
            "decay": self.decay and asdict(self.decay),
            "rollback_to": self.rollback_to,
        }
        return {
            "generation": plan.generation,
            "sigma": plan.sigma,
            "alpha": self.alpha,
            "members": [member.label(plan.generation) for member in plan.members],
            "rewards": [_null_nan(reward) for reward in self.rewards],
            "coefficients": self.coefficients,
            "prompts": self.prompts,
            "reward_unperturbed": _null_nan(self.reward_unperturbed),
            "tokens": self.tokens,
            "state": self.state,
            **{name: value for name, value in some.items() if value is not None},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Build the record from JSON data, float for float.  Raises ValueError if it is of another form."""
        line = conform(data, _RecordLine)
        generation, back = line["generation"], line.get("rollback_to")
        members = tuple(Member.parse(label, generation) for label in line["members"])
        if not len(members) == len(line["rewards"]) == len(line["coefficients"]) > 0:
            raise ValueError("members, rewards and coefficients do not go together")
        if back is not None and back > generation:
            raise ValueError(f"generation {generation} goes back to {back}, which was not before it")
        shift, decay = line.get("shift"), line.get("decay")
        return cls(
            plan=Plan(generation, line["sigma"], members, shift and _shift(shift)),
            alpha=line["alpha"],
            rewards=tuple(math.nan if reward is None else reward for reward in line["rewards"]),
            coefficients=tuple(line["coefficients"]),
            prompts=tuple(line["prompts"]),
            reward_unperturbed=line["reward_unperturbed"],
            tokens=line["tokens"],
            state=line["state"],
            agreement=line.get("agreement"),
            watched=tuple(line.get("watched", ())),
            decay=decay and Decay(**decay),
            rollback_to=back,
        )


class _ShiftLine(TypedDict):
    terms: list[Annotated[list[Finite], Field(min_length=3, max_length=3)]]
    length: Finite | None


class _DecayLine(TypedDict):
    l2: Finite
    l1: Finite


class _RecordLine(TypedDict):
    """A generation in the file."""

    generation: GenerationCount
    sigma: Annotated[Finite, Field(gt=0.0)]
    alpha: Finite
    members: list[str]
    rewards: list[Finite | None]
    coefficients: list[Finite]
    prompts: list[Count]
    reward_unperturbed: Finite | None
    tokens: dict[str, Annotated[int, Field(ge=0, lt=2**63)]]
    state: dict[str, Any]
    agreement: NotRequired[Finite]
    watched: NotRequired[list[Finite | None]]
    shift: NotRequired[_ShiftLine]
    decay: NotRequired[_DecayLine]
    rollback_to: NotRequired[GenerationCount]


def _shift(line: _ShiftLine) -> Shift:
    return Shift(tuple(Term(int(g), int(p), w) for g, p, w in line["terms"]), line["length"])


def _null_nan(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
