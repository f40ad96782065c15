"""Comparison of two runs by their ledgers: the first difference, causes before effects.  No model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedtune.engines import recorded_arithmetic
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.run import directory, ledger
from seedtune.run.ledger import Contents, Header, Record

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
    """Compare two run directories by their ledgers.  Raises LedgerError if one is corrupted."""
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
    named = (
        ("base model", a.base_fingerprint, b.base_fingerprint),
        ("element type of the weights", a.weights_dtype, b.weights_dtype),
        ("noise scheme", a.noise, b.noise),
    )
    found = [f"{what}: {one} and {two}" for what, one, two in named if one != two]
    found += _changes("", a.config, b.config)
    if a.data != b.data:
        found.append(f"training data: digests {a.data or 'none'} and {b.data or 'none'}")
    return found


def _notes(a: Header, b: Header) -> list[str]:
    named = (("base model is named", a.model, b.model), ("made by seedtune", a.version, b.version))
    return [f"{what} {one} and {two}" for what, one, two in named if one != two]


def _computed(what: str, one: Entry, two: Entry) -> list[str]:
    """Compare how rewards were computed."""
    if one == two:
        return []
    return [f"{what} are computed with {recorded_arithmetic.words(one)} and with {recorded_arithmetic.words(two)}"]


def _parting(a: Contents, b: Contents) -> tuple[int | None, list[str]]:
    """Return the first generation that differs, and its differences."""
    for generation, (one, two) in enumerate(zip(a.records, b.records, strict=False)):
        reasons = _record(one, two)
        if reasons:
            computed = (contents.arithmetic(generation) for contents in (a, b))
            reasons = [*_computed("this generation's rewards", *computed), *reasons]
        fingerprint = _fingerprint(generation + 1, a, b)
        if fingerprint and not reasons:
            fingerprint += ", though all records so far are equal: other base weights, or other arithmetic"
        if reasons or fingerprint:
            return generation, [*reasons, *([fingerprint] if fingerprint else [])]
    return None, []


def _fingerprint(done: int, a: Contents, b: Contents) -> str:
    one, two = a.fingerprints.get(done), b.fingerprints.get(done)
    if one is None or two is None or one == two:
        return ""
    return f"fingerprints after {done} generations: {one} and {two}"


def _record(a: Record, b: Record) -> list[str]:
    return [line for compare in _COMPARISONS for line in compare(a, b)]


def _members(a: Record, b: Record) -> list[str]:
    one, two = ([member.label(r.plan.generation) for member in r.plan.members] for r in (a, b))
    if len(one) != len(two):
        return [f"members: {len(one)} and {len(two)}"]
    changed = [f"{x} and {y}" for x, y in zip(one, two, strict=True) if x != y]
    return _listed("members", changed, len(one))


def _scale(a: Record, b: Record) -> list[str]:
    pairs = (("sigma", a.plan.sigma, b.plan.sigma), ("shift", a.plan.shift, b.plan.shift))
    return [f"{name}: {one!r} and {two!r}" for name, one, two in pairs if one != two]


def _decided(a: Record, b: Record) -> list[str]:
    pairs = ((name, getattr(a, name), getattr(b, name)) for name in ("alpha", "decay", "rollback_to"))
    return [f"{name}: {one!r} and {two!r}" for name, one, two in pairs if one != two]


def _observation(a: Record, b: Record) -> list[str]:
    return _changes("observation ", a.observation, b.observation)


def _prompts(a: Record, b: Record) -> list[str]:
    return [] if a.prompts == b.prompts else [f"prompts: {_short(a.prompts)} and {_short(b.prompts)}"]


def _rewards(a: Record, b: Record) -> list[str]:
    return _by_member("rewards", (a, a.rewards), (b, b.rewards))


def _coefficients(a: Record, b: Record) -> list[str]:
    return _by_member("coefficients", (a, a.coefficients), (b, b.coefficients))


def _by_member(what: str, a: tuple[Record, Sequence[float]], b: tuple[Record, Sequence[float]]) -> list[str]:
    """List the members with different values, with both values; empty if the members themselves differ."""
    if len(a[1]) != len(b[1]):
        return []
    labels = [member.label(a[0].plan.generation) for member in a[0].plan.members]
    rows = zip(labels, a[1], b[1], strict=True)
    # repr shows every bit, and makes NaN equal to NaN.
    changed = [f"{label}: {one!r} and {two!r}" for label, one, two in rows if repr(one) != repr(two)]
    return _listed(what, changed, len(labels))


def _state(a: Record, b: Record) -> list[str]:
    return _changes("state ", a.state, b.state)


def _unperturbed(a: Record, b: Record) -> list[str]:
    one, two = a.reward_unperturbed, b.reward_unperturbed
    return [] if repr(one) == repr(two) else [f"reward of the unperturbed model: {one!r} and {two!r}"]


def _tokens(a: Record, b: Record) -> list[str]:
    return _changes("tokens ", a.tokens, b.tokens)


def _changes(what: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    return [f"{what}{name}: {one!r} and {two!r}" for name, one, two in ledger.differences(a, b)]


_COMPARISONS: tuple[Callable[[Record, Record], list[str]], ...] = (
    _members, _scale, _prompts, _tokens, _rewards, _unperturbed, _coefficients, _observation, _decided, _state,
)  # fmt: skip
"""Causes before effects: members and prompts, then completions and rewards, then the decision."""


def _listed(what: str, changed: list[str], total: int) -> list[str]:
    if not changed:
        return []
    more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return [f"{what} ({len(changed)} of {total} differ): {'; '.join(changed[:_SHOWN])}{more}"]


def _short(prompts: Sequence[int]) -> str:
    shown = ", ".join(str(prompt) for prompt in prompts[:8])
    return f"{shown}, … ({len(prompts)})" if len(prompts) > 8 else shown
