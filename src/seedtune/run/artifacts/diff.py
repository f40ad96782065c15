"""Comparison of two runs by their ledgers: the first difference, causes before effects.  No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedtune.engines import recorded_arithmetic
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.run import directory, ledger, recorded_config
from seedtune.run.ledger import Contents
from seedtune.run.records import Header

_SHOWN = 4
"""Members listed individually; the others are counted."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The differences between two runs; empty if they are equal."""

    header: tuple[str, ...]
    """Differences in the starting point: base model, settings, data, noise."""

    notes: tuple[str, ...]
    """Differences that equal runs may have: names, versions, how rewards are computed."""

    generation: int | None
    """The first generation whose records differ; None if all common records are equal."""

    reasons: tuple[str, ...]
    """The differences in this generation, causes before effects."""

    generations: tuple[int, int]
    """Number of generations of each run."""

    fingerprints: int
    """Number of equal fingerprints recorded by both runs."""

    @property
    def equal(self) -> bool:
        """Same start, same records, same length; names and versions may differ."""
        return not self.header and self.generation is None and self.generations[0] == self.generations[1]


def diff_runs(run_a: str | Path, run_b: str | Path) -> Difference:
    """Compare two run directories by their ledgers.  Raises RunError without one, LedgerError if corrupted."""
    a, b = (ledger.read(directory.RunPaths(Path(run)).ledger) for run in (run_a, run_b))
    generation, reasons = _parting(a, b)
    common = a.fingerprints.keys() & b.fingerprints.keys()
    return Difference(
        header=tuple(_header(a.header, b.header)),
        notes=(*_notes(a.header, b.header), *_computed("rewards", a.header.arithmetic, b.header.arithmetic)),
        generation=generation,
        reasons=tuple(reasons),
        generations=(a.generations, b.generations),
        fingerprints=sum(a.fingerprints[done] == b.fingerprints[done] for done in common),
    )


def _header(a: Header, b: Header) -> list[str]:
    """Compare the starting points, the base model first."""
    return [
        *_named("base model: ", a.base_fingerprint, b.base_fingerprint),
        *_named("tokenizer and chat template: ", a.tokenizer_fingerprint, b.tokenizer_fingerprint),
        *_named("element type of the weights: ", a.resolved_weights_dtype, b.resolved_weights_dtype),
        *_named("noise scheme: ", a.noise, b.noise),
        *_changes("", a.config, b.config),
        *_named("training data: digests ", a.data or "none", b.data or "none"),
        *_named("training prompts as the model reads them: digests ", a.prompts or "none", b.prompts or "none"),
    ]


def _notes(a: Header, b: Header) -> list[str]:
    return [*_named("base model is named ", a.model, b.model), *_named("made by seedtune ", a.seedtune, b.seedtune)]


def _named(what: str, first: str, second: str) -> list[str]:
    return [f"{what}{first} and {second}"] if first != second else []


def _computed(what: str, first: Entry, second: Entry) -> list[str]:
    """Compare how rewards were computed."""
    if first == second:
        return []
    both = " and with ".join(map(recorded_arithmetic.summary, (first, second)))
    return [f"{what} are computed with {both}"]


def _parting(a: Contents, b: Contents) -> tuple[int | None, list[str]]:
    """Return the first generation that differs, and its differences."""
    for generation, (first, second) in enumerate(zip(a.records, b.records, strict=False)):
        reasons = _record(first.to_json(), second.to_json())
        if reasons:
            computed = (contents.arithmetic(generation) for contents in (a, b))
            reasons = [*_computed("this generation's rewards", *computed), *reasons]
        done = generation + 1
        ends = [contents.fingerprints.get(done) for contents in (a, b)]
        if None not in ends and ends[0] != ends[1]:
            alone = "" if reasons else ", though all records so far are equal: other base weights, or other arithmetic"
            reasons.append(f"fingerprints after {done} generations: {ends[0]} and {ends[1]}{alone}")
        if reasons:
            return generation, reasons
    return None, []


def _record(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Compare two generations as the ledgers hold them, causes before effects."""
    found: list[str] = []
    for name in _ORDER:
        first: Any = a.get(name)
        second: Any = b.get(name)
        if name in _BY_MEMBER:
            found += _by_member(name, a["members"], first, second)
        elif name in _MAPPINGS:
            found += _changes(f"{name} ", first or {}, second or {})
        elif repr(first) != repr(second):  # repr shows every bit of a float
            form = _short if name == "prompts" else repr
            found.append(f"{_NAMES.get(name, name)}: {form(first)} and {form(second)}")
    return found


_ORDER = (
    "members", "sigma", "shift", "prompts", "tokens", "rewards", "reward_unperturbed", "coefficients", "agreement",
    "watched", "alpha", "decay", "rollback_to", "state",
)  # fmt: skip
"""Causes before effects: members and prompts, then completions and rewards, then the decision."""

_BY_MEMBER = ("members", "rewards", "coefficients")
_MAPPINGS = ("tokens", "state")
_NAMES = {"reward_unperturbed": "reward of the unperturbed model"}


def _by_member(what: str, labels: Sequence[str], a: Sequence[Any], b: Sequence[Any]) -> list[str]:
    """List the members with different labels or values; unequal numbers of members count as different labels only."""
    if len(a) != len(b):
        return [f"members: {len(a)} and {len(b)}"] if what == "members" else []
    rows = zip(("" if what == "members" else f"{label}: " for label in labels), a, b, strict=True)
    form = str if what == "members" else repr
    changed = [
        f"{label}{form(first)} and {form(second)}" for label, first, second in rows if repr(first) != repr(second)
    ]
    if not changed:
        return []
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return [f"{what} ({len(changed)} of {len(a)} differ): {'; '.join(changed[:_SHOWN])}{more}"]


def _changes(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [f"{what}{name}: {first!r} and {second!r}" for name, first, second in recorded_config.differences(a, b)]


def _short(prompts: Sequence[int]) -> str:
    shown = ", ".join(str(prompt) for prompt in prompts[:8])
    return f"{shown}, … ({len(prompts)})" if len(prompts) > 8 else shown
