"""Check that all workers of one kind of engine compute with the arithmetic of the first that enrolled."""

from __future__ import annotations

from seedtune.engines import recorded_arithmetic
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.errors import ProductsError, SeedtuneError


class Agreement:
    """The arithmetic of the workers of each engine."""

    def __init__(self) -> None:
        self.known: dict[str, Entry] = {}

    def products(self, kind: str) -> str:
        """Return the matrix products of an engine's workers, by the setting's name; "" before the first enrolled."""
        return recorded_arithmetic.kind(self.known.get(kind, {}))

    def objection(self, kind: str, found: Entry) -> str | None:
        """Return why to refuse a worker, naming both arithmetics and the fix; None if it computes as the first does."""
        known = self.known.setdefault(kind, found)
        if known == found:
            return None
        its, theirs = recorded_arithmetic.words(found), recorded_arithmetic.words(known)
        return f"it computes with {its}, the others with {theirs}: {_fix(kind, known)}"

    def explained(self, name: str, kind: str, error: SeedtuneError) -> SeedtuneError:
        """Return why a worker cannot use the products of the others, including which those are."""
        if not isinstance(error, ProductsError) or kind not in self.known:
            return error
        known = self.known[kind]
        others = f"The others compute with {recorded_arithmetic.words(known)}"
        return ProductsError(f"worker {name}: {error} {others}: {_fix(kind, known)}.")


def _fix(kind: str, known: Entry) -> str:
    alike = "give all workers the same machine and the same versions"
    if kind == "transformers" and known.get("device") == "cpu" and recorded_arithmetic.kind(known) != "fma32":
        return f"use transformers.products=fma32, which every CPU worker with FMA can, or {alike}"
    return alike
