"""Check that all workers hold the base model of the first that enrolled, and those of one kind compute as its first."""

from __future__ import annotations

from dataclasses import dataclass, field

from seedtune.engines import recorded_arithmetic
from seedtune.engines.base import EngineInfo
from seedtune.engines.recorded_arithmetic import Entry
from seedtune.errors import ProductsError, SeedtuneError


@dataclass(slots=True)
class Agreement:
    """The description of the first worker that enrolled, and the arithmetic of the first of each kind of engine."""

    info: EngineInfo | None = None
    known: dict[str, Entry] = field(default_factory=dict)

    def objection(self, kind: str, found: EngineInfo) -> str | None:
        """Return why to refuse a worker, naming both sides and the fix; None if it agrees with the first ones."""
        first, known = self.info or found, self.known.setdefault(kind, found.arithmetic)
        self.info = first
        if known != found.arithmetic:
            new, earlier = recorded_arithmetic.summary(found.arithmetic), recorded_arithmetic.summary(known)
            return f"it computes with {new}, the others with {earlier}: {_fix(kind, known)}"
        others, own = ((info.base_fingerprint, info.resolved_weights_dtype) for info in (first, found))
        if others != own:
            held = f"it holds a base model {own[0]} with weights in {own[1]}, the others {others[0]} with {others[1]}"
            return f"{held}: give all workers the same model and precision"
        if first.tokenizer_fingerprint != found.tokenizer_fingerprint:
            return (
                f"its tokenizer or chat template reads text otherwise ({found.tokenizer_fingerprint}) than the others' "
                f"({first.tokenizer_fingerprint}): give all workers the same files of the model"
            )
        return None

    def explained(self, name: str, kind: str, error: SeedtuneError) -> SeedtuneError:
        """Return why a worker cannot use the products of the others, including which those are."""
        if not isinstance(error, ProductsError) or kind not in self.known:
            return error
        known = self.known[kind]
        others = f"The others compute with {recorded_arithmetic.summary(known)}"
        return ProductsError(f"worker {name}: {error} {others}: {_fix(kind, known)}.")


def _fix(kind: str, known: Entry) -> str:
    alike = "give all workers the same machine and the same versions"
    if kind == "transformers" and known.get("device") == "cpu" and recorded_arithmetic.kind(known) != "fma32":
        return f"use products=fma32, which every CPU worker with FMA can, or {alike}"
    return alike
