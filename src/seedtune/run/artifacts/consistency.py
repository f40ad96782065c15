"""Audit of a ledger's consistency: plans follow from the configuration, coefficients and states from the rewards.

A strategy is a function of its inputs, so it can be run again on the recorded rewards.  This finds what checksums
cannot: a record that was edited and sealed again.  No model is needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.errors import LedgerError
from seedtune.run import ledger
from seedtune.run.records import Record
from seedtune.strategies import sigma_rule
from seedtune.strategies.base import Feedback, State, Step
from seedtune.strategies.es import EvolutionStrategy
from seedtune.strategies.sigma_rule import Measurement
from seedtune.strategies.state_schema import check_state
from seedtune.types import Member, Plan

Vector = NDArray[np.float64]
Extent = Literal["exact", "scaled", "unchecked"]
"""How closely a generation's coefficients could be checked against its rewards."""

_LAST_BITS = 1e-12
"""Relative difference between two builds of numpy."""

_SCALED = 1e-9
"""Tolerance of ``scaled``, relative to the largest coefficient: float64 arithmetic in another order."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Number of generations whose coefficients were recomputed from the recorded rewards, by exactness."""

    exact: int = 0
    scaled: int = 0
    unchecked: int = 0


def audit(root: Path, config: Config, contents: ledger.Contents) -> Audit:
    """Run the strategy again on every recorded reward; LedgerError names the first inconsistent generation."""
    _check_sigma(root, config, contents.header.measured)
    strategy, asked = strategies.create(config), _Asked(contents.header.config.get("max_staleness", 0))
    state: State = {}
    counts = Counter[str]()
    for record in contents.records:
        plan = record.plan
        where = f"{root}: generation {plan.generation}"
        _check_plan(where, asked.expected(strategy.ask(state, plan.generation), plan), plan, asked)
        groups = [member.generation for member in plan.members]
        utilities = strategy.balance(plan, strategy.shape(Feedback(np.array(record.rewards)[:, None], groups=groups)))
        counts[_check_coefficients(where, config, record, utilities)] += 1
        _check_step(where, _decided(where, strategy, state, record), record)
        state = record.state
    return Audit(**counts)


def _decided(where: str, strategy: EvolutionStrategy, state: State, record: Record) -> Step:
    """Decide the step again; LedgerError if what the record watched is nothing that a strategy can compare."""
    try:
        check_state(state)
        return strategy.decide(state, record.plan, record.coefficients, record.evidence)
    except (ArithmeticError, ValueError) as error:
        raise LedgerError(f"{where}: its watched rewards cannot be compared ({error}). {_EDITED}") from error


@dataclass(slots=True)
class _Asked:
    """Track which members a generation may have: without ``max_staleness``, exactly its own.

    With ``max_staleness``, any members requested at most that many generations ago and not yet evaluated, oldest first.
    """

    max_staleness: int
    open: dict[Member, int] = field(default_factory=dict)
    """Member → generation that requested it."""

    fate: dict[Member, str] = field(default_factory=dict)
    """Member → the reason why it is not open any more."""

    def expected(self, asked: Plan, recorded: Plan) -> Plan:
        """Return the strategy's plan ``asked`` with the members it must have, given those of the ``recorded`` plan."""
        now = asked.generation
        for member in [member for member, since in self.open.items() if now - since > self.max_staleness]:
            self.fate[member] = (
                f"generation {self.open.pop(member)} asked for: over ray.max_staleness={self.max_staleness} before"
            )
        self.open |= dict.fromkeys(asked.members, now)
        had = set(recorded.members) if self.max_staleness else set(asked.members)
        members = tuple(member for member in self.open if member in had)
        self.fate |= dict.fromkeys(members, f"generation {now} has already")
        for member in members:
            del self.open[member]
        return replace(asked, members=members)

    def members(self, expected: Plan, recorded: Plan) -> str:
        """Say which recorded member a generation cannot have, and why."""
        for place, member in enumerate(recorded.members if self.max_staleness else ()):
            if member not in expected.members or member in recorded.members[:place]:
                why = self.fate.get(member, "the strategy did not ask for")
                return f"recorded is member {member.label(recorded.generation)}, which {why}"
        for wanted, found in zip(expected.members, recorded.members, strict=False):
            if wanted != found:
                labels = [member.label(recorded.generation) for member in (found, wanted)]
                return f"recorded is member {labels[0]}, but the strategy asks for {labels[1]}"
        return f"recorded are {len(recorded.members)} members, but the strategy asks for {len(expected.members)}"


def _check_sigma(root: Path, config: Config, measured: Sequence[Measurement]) -> None:
    """Check that the σ of a run that measured it follows from its measurements."""
    for done in range(len(measured) + 1 if measured else 0):
        asked = sigma_rule.following(measured[:done])
        if asked != (measured[done].sigma if done < len(measured) else None):
            raise LedgerError(f"{root}: measurement {done + 1} of σ is none that the rule asks for. {_EDITED}")
    if measured and (expected := sigma_rule.found(measured)) != config.sigma:
        raise LedgerError(f"{root}: σ is {config.sigma}, but its measurements give {expected}. {_EDITED}")


def _check_plan(where: str, expected: Plan, recorded: Plan, asked_for: _Asked) -> None:
    for name in ("sigma", "members", "shift"):
        asked, found = getattr(expected, name), getattr(recorded, name)
        if asked != found:
            message = f"recorded is {name} {found!r}, but the configuration gives {asked!r}"
            message = asked_for.members(expected, recorded) if name == "members" else message
            raise LedgerError(f"{where} does not follow from the run's configuration: {message}. {_EDITED}")


def _check_step(where: str, step: Step, record: Record) -> None:
    """Check α, decay, rollback and state, which are functions of the record: equal bit for bit."""
    state = json.loads(json.dumps(dict(step.state)))
    pairs = [(name, getattr(step, name), getattr(record, name)) for name in ("alpha", "decay", "rollback_to")]
    for name, expected, found in (*pairs, ("state of the strategy", state, record.state)):
        if found != expected:
            raise LedgerError(f"{where}: recorded is {name} {found!r}, but the rewards give {expected!r}. {_EDITED}")


def _check_coefficients(where: str, config: Config, record: Record, expected: Sequence[float]) -> Extent:
    """Check the coefficients against what the shaping makes of the members' rewards; others are not recorded."""
    if config.multi_objective_aggregation != "sum_then_normalize":
        return "unchecked"
    return (_up_to_a_factor if config.shaping == "per_prompt" else _exactly)(where, record, expected)


def _exactly(where: str, record: Record, coefficients: Sequence[float]) -> Extent:
    """Check a shaping that is a function of the member rewards: equal bit for bit."""
    expected, found = np.array(coefficients), np.array(record.coefficients)
    wrong = np.flatnonzero(expected.view(np.uint64) != found.view(np.uint64))
    if wrong.size:
        raise _inconsistent(where, record, int(wrong[0]), float(expected[wrong[0]]))
    return "exact"


def _up_to_a_factor(where: str, record: Record, coefficients: Sequence[float]) -> Extent:
    """Check that z = k·z′ for an unknown 0 ≤ k ≤ 1, where z′ are the coefficients that the mean rewards R give.

    z′ is zscore(R), times the weights of uneven subspaces.  Scores that are centered per prompt and then averaged are
    centered on average; k is the standard deviation of the mean rewards over that of all centered scores, which are
    not recorded.
    """
    unit, found = np.array(coefficients), np.array(record.coefficients)
    if not unit.any():
        return "unchecked"
    factor = float(unit @ found) / float(unit @ unit)
    allowed = _SCALED + 64 * _cancellation(np.array(record.rewards))
    off = np.abs(found - factor * unit)
    if not -allowed <= factor <= 1 + allowed or off.max() > allowed * np.abs(unit).max():
        index = int(off.argmax())
        raise _inconsistent(where, record, index, min(max(factor, 0.0), 1.0) * float(unit[index]))
    return "scaled"


def _cancellation(rewards: Vector) -> float:
    """Bound the rounding error of a centered reward, relative to the standard deviation."""
    known = rewards[~np.isnan(rewards)]
    return float(np.finfo(np.float64).eps * np.abs(known).max() / known.std())


def _inconsistent(where: str, record: Record, index: int, expected: float) -> LedgerError:
    found = record.coefficients[index]
    label = record.plan.members[index].label(record.plan.generation)
    near = abs(found - expected) <= _LAST_BITS * max(abs(found), abs(expected))
    last = " They differ in their last bits only, which another version of numpy may also do." if near else ""
    return LedgerError(
        f"{where}: the coefficient of member {label} is {found!r}, but the recorded rewards give {expected!r}. "
        f"{_EDITED}{last}"
    )


_EDITED = "The checksums are good, so the record was edited and sealed again, rewards or coefficients."
