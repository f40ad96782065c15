"""What every engine does: evaluate members of the population, apply updates, and give the weights away.

How many updates one pass over the weights takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from seedtune.types import Coverage, Decay, Job, Likelihood, Prompt, Rollout, Term, Update

BASE = Update(0, (), Decay(l2=1.0))
"""What takes any weights to θ₀, exactly."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine says about itself, much of it for the ledger's header."""

    model: str
    base_fingerprint: str
    dtype: str
    device: str
    coverage: Coverage
    weights_dtype: str = "float32"
    """Element type of the current weights."""

    arithmetic: Mapping[str, Any] = field(default_factory=dict)
    """How rewards are computed, as plain JSON data: see `seedtune.engines.recorded_arithmetic`."""

    products: str = ""
    """The same for people: the kind of matrix products and what it runs on, "fma32 6×16 (AVX2)"."""


@dataclass(slots=True)
class EngineTimes:
    """Seconds spent since the last ``take``: perturbing, and generated and prompt tokens processed."""

    perturb: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    update: float = 0.0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """What else this engine counts, by the name of the metric."""

    notes: list[str] = field(default_factory=list)
    """What happened that whoever watches should know."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A submitted job that is done; without rollouts if nobody could evaluate it."""

    job: int
    rollouts: tuple[Rollout, ...]


class Engine(Protocol):
    """The engine protocol.  Every method may raise a ``SeedtuneError`` that says what to do."""

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Load the base model, and the current weights from ``snapshot`` if one is given."""
        ...

    def context_length(self) -> int | None:
        """Tokens that a prompt and its completion may have together; None: any number.  Needs no ``load``."""
        ...

    def prompt_lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Tokens of each prompt as the model reads it.  Needs no ``load``."""
        ...

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Yield every job's rollouts as they finish, in any order.

        The members of a job with a shift are perturbed from where the shift's terms would move the current weights as
        an update (of the generation of the newest term); the current weights stay as they are, bit for bit.  With
        ``rows`` only these are evaluated, and each gives what it gives among all.
        """
        ...

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Yield how probable each prompt's ``answers`` are to every job's members, in any order; nothing is generated.

        An answer is tokenised by itself and stands behind the prompt, no end token added; DataError if it is empty.
        """
        ...

    def apply(self, *updates: Update) -> None:
        """Change the current weights by every update in order, exactly; several at once pass over the weights once."""
        ...

    def norm(self, terms: Sequence[Term]) -> float:
        """‖Σ weight·ε‖₂ over all trained elements, in float64: how far an update of these terms goes."""
        ...

    def drift(self) -> float:
        """‖θ − θ₀‖₂ over all trained elements, in float64: how far the current weights are from the base model."""
        ...

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        """The cosine between two updates, from a sample of the trained elements; 0 if one of them goes nowhere."""
        ...

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        """Log-probabilities of every token of each prompt's completion (ids), temperature 1, by the current model.

        With ``base`` by the base model θ₀ instead.  The current weights stay as they are.
        """
        ...

    def fingerprint(self) -> str:
        """The fingerprint of the current weights: equal on every engine that holds the same bits."""
        ...

    def snapshot(self, path: Path) -> None:
        """Write the current weights into the folder ``path``, from which ``load`` reads it again."""
        ...

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Write the complete current model, which other tools load, in its own precision or ``dtype``."""
        ...

    def take_times(self) -> EngineTimes:
        """The time accounting since the last call."""
        ...

    def close(self) -> None:
        """Release what the engine holds."""
        ...


class Streaming(Engine, Protocol):
    """An engine that evaluates while the current weights change.  Submitted jobs and those of `evaluate` do not mix."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs, their ids unique in a run; each is evaluated with the weights of when it is handed out."""
        ...

    def finished(self) -> Finished | None:
        """Wait for the next submitted job that is done; None if none is open."""
        ...

    def starving(self) -> bool:
        """Whether nothing is queued and a worker has nothing to do."""
        ...


BATCH_UPDATES, BATCH_TERMS = 16, 1024
"""One pass over the weights takes at most so many updates, and so many noise samples unless one update has more."""


def passes(updates: Sequence[Update]) -> Iterator[Sequence[Update]]:
    """All updates, cut into passes."""
    start = 0
    while start < len(updates):
        batch = first_pass(updates, start, len(updates))
        yield batch
        start += len(batch)


def first_pass(updates: Sequence[Update], start: int, stop: int) -> list[Update]:
    """The updates of one pass, from ``start`` and not beyond ``stop``."""
    batch: list[Update] = []
    terms = 0
    for update in updates[start : min(stop, start + BATCH_UPDATES)]:
        terms += len(update.terms)
        if batch and terms > BATCH_TERMS:
            break
        batch.append(update)
    return batch
