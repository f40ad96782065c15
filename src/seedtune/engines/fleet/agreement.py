"""Workers of one engine compute alike: by the arithmetic of the first that came."""

from __future__ import annotations

from seedtune import arithmetic
from seedtune.arithmetic import Entry
from seedtune.errors import ProductsError, SeedtuneError


class Agreement:
    """How the workers of each engine compute."""

    def __init__(self) -> None:
        self.known: dict[str, Entry] = {}

    def products(self, kind: str) -> str:
        """The products of an engine's workers, as its setting names them; "" before the first has come."""
        return arithmetic.kind(self.known.get(kind, {}))

    def objection(self, kind: str, found: Entry) -> str | None:
        """Why a worker cannot stay, naming both arithmetics and the fix; None if it computes as the first does."""
        known = self.known.setdefault(kind, found)
        if known == found:
            return None
        return f"it computes with {arithmetic.words(found)}, the others with {arithmetic.words(known)}: {_fix(kind)}"

    def explained(self, name: str, kind: str, error: SeedtuneError) -> SeedtuneError:
        """Why a worker cannot have the products of the others, whose they are included."""
        if not isinstance(error, ProductsError) or kind not in self.known:
            return error
        others = arithmetic.words(self.known[kind])
        return ProductsError(f"worker {name}: {error} The others compute with {others}: {_fix(kind)}.")


def _fix(kind: str) -> str:
    if kind == "transformers":
        return "use transformers.products=fma32, which every CPU worker can, or give all workers the same machine"
    return "give all workers the same machine and the same versions"
