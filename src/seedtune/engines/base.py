"""The engine protocol: evaluate members of the population, apply updates, and export the weights.

Also how many updates one pass over the weights takes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from seedtune.errors import DataError
from seedtune.types import Coverage, Decay, Job, Likelihood, Prompt, Rollout, Term, Update

if TYPE_CHECKING:
    from seedtune.numerics.weights import Weights

BASE = Update(0, (), Decay(l2=1.0))
"""The decay that takes any weights to θ₀, exactly."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Description of a loaded engine; much of it goes into the ledger's header."""

    model: str
    base_fingerprint: str
    dtype: str
    device: str
    coverage: Coverage
    resolved_weights_dtype: str = "float32"
    """Element type of the current weights."""

    arithmetic: Mapping[str, Any] = field(default_factory=dict)
    """How rewards are computed, as plain JSON data: see `seedtune.engines.recorded_arithmetic`."""

    products: str = ""
    """The arithmetic in readable form: the kind of matrix products and the hardware, such as "fma32 6×16 (AVX2)"."""

    tokenizer_fingerprint: str = ""
    """Digest of how text and chats become tokens: of the vocabulary, and of some texts and chats as they are read."""


@dataclass(slots=True)
class EngineTimes:
    """Seconds spent since the last ``take``: perturbing; also the generated and prompt tokens processed."""

    perturb: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    update: float = 0.0
    generated_tokens: int = 0
    prompt_tokens: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    """Engine-specific counters, by the name of the metric."""

    notes: list[str] = field(default_factory=list)
    """Events to show to the user."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished job; ``rollouts`` is empty if no worker could evaluate it."""

    job: int
    rollouts: tuple[Rollout, ...]


class Tokenizer(Protocol):
    """Token ids and limits of prompts, known without loading an engine: see `seedtune.engines.tokenizer`."""

    @property
    def context_length(self) -> int | None:
        """Maximum of prompt plus completion tokens; None: no limit."""
        ...

    def encode(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the token ids of each prompt, as the model reads it; DataError for the first that it cannot read."""
        ...

    def lengths(self, prompts: Sequence[Prompt]) -> list[int]:
        """Return the number of tokens of each prompt; DataError for the first that the model cannot read."""
        ...


def check_readable(prompt: Prompt) -> None:
    """Raise DataError for a message whose role or content is not text (tool calls need none), or for broken text."""
    if isinstance(prompt.content, str):
        check_text(prompt, prompt.content)
        return
    for message in prompt.content:
        role, content = message.get("role"), message.get("content")
        text = "" if content is None and message.get("tool_calls") else content
        if not isinstance(role, str) or not isinstance(text, str):
            raise DataError(
                f"prompt {prompt.id} has a message with the role {role!r} and the content {content!r:.200}, which is "
                "not text. Give its text; images and other parts are not supported."
            )
        check_text(prompt, role + text)


def check_text(prompt: Prompt, text: str) -> None:
    """Raise DataError if the text of a prompt holds half a character, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        start = error.start
        raise DataError(
            f"prompt {prompt.id} holds half a character (a lone surrogate) in "
            f"{text[max(0, start - 20) : start + 20]!r}. Remove it, or read the data as UTF-8."
        ) from None


class Engine(Protocol):
    """The engine protocol.  Every method may raise a ``SeedtuneError`` that says what to do."""

    tokenizer: Tokenizer
    """Usable before ``load``."""

    def load(self, snapshot: Path | None = None) -> EngineInfo:
        """Load the base model, and the current weights from ``snapshot`` if given."""
        ...

    def evaluate(self, jobs: Iterable[Job]) -> Iterator[Rollout]:
        """Yield every job's rollouts as they finish, in any order.

        The members of a job with a shift are perturbed from the weights that an update with the shift's terms (of the
        generation of the newest term) would give; the current weights stay the same, bit for bit.  With ``rows`` only
        these rows are evaluated, and each gives the same result as in the whole job.
        """
        ...

    def likelihoods(self, jobs: Iterable[Job]) -> Iterator[Likelihood]:
        """Yield the log-likelihood of each prompt's ``answers`` under every job's members, in any order.

        Nothing is generated.  An answer is tokenised by itself and appended to the prompt without an end token.
        Raises DataError if an answer is empty.
        """
        ...

    def apply(self, *updates: Update) -> None:
        """Apply every update to the current weights in order, exactly; several updates share one pass over them."""
        ...

    def norm(self, terms: Sequence[Term]) -> float:
        """Return ‖Σ weight·ε‖₂ over all trained elements, in float64: the length of an update with these terms."""
        ...

    def drift(self) -> float:
        """Return ‖θ − θ₀‖₂ over all trained elements, in float64: the distance of the current weights from the base."""
        ...

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        """Return the cosine between two updates, from a sample of the trained elements; 0 if an update is zero."""
        ...

    def logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[int]], *, base: bool = False
    ) -> list[list[float]]:
        """Return the log-probabilities of every token of each completion (ids), at temperature 1.

        Uses the current model, or with ``base`` the base model θ₀.  The current weights stay as they are.
        """
        ...

    def fingerprint(self) -> str:
        """Return the fingerprint of the current weights: equal on every engine that holds the same bits."""
        ...

    def snapshot(self, path: Path) -> None:
        """Write the current weights into the folder ``path``; ``load`` reads them from there."""
        ...

    def export(self, path: Path, dtype: str | None = None) -> None:
        """Write the complete current model for other tools to load, in its own precision or ``dtype``."""
        ...

    def take_times(self) -> EngineTimes:
        """Return the times and counts since the last call, and reset them."""
        ...

    def close(self) -> None:
        """Release the engine's resources."""
        ...


class LocalEngine(Engine):
    """An engine that holds all current weights in this process, as ``weights``."""

    weights: Weights

    def __init__(self) -> None:
        self._times = EngineTimes()

    def _now(self) -> float:
        """Return the time in seconds, after all work that the engine has started: a GPU works on after a call."""
        return time.perf_counter()

    def apply(self, *updates: Update) -> None:
        started = self._now()
        self.weights.apply(*updates)
        self._times.update += self._now() - started

    def norm(self, terms: Sequence[Term]) -> float:
        return self.weights.norm(terms)

    def drift(self) -> float:
        return self.weights.drift()

    def cosine(self, one: Sequence[Term], other: Sequence[Term]) -> float:
        return self.weights.cosine(one, other)

    def fingerprint(self) -> str:
        return self.weights.fingerprint()

    def snapshot(self, path: Path) -> None:
        self.weights.save(path)

    def take_times(self) -> EngineTimes:
        taken, self._times = self._times, EngineTimes()
        return taken


BATCH_UPDATES, BATCH_TERMS = 16, 1024
"""Maximum updates, and maximum noise samples (more only if a single update has more), per pass over the weights."""


def passes(updates: Sequence[Update], stops: Collection[int] = ()) -> Iterator[list[Update]]:
    """Split all updates into passes; one ends at each of ``stops``, a number of updates."""
    batch: list[Update] = []
    terms = 0
    for done, update in enumerate(updates):
        terms += len(update.terms)
        if batch and (len(batch) == BATCH_UPDATES or terms > BATCH_TERMS or done in stops):
            yield batch
            batch, terms = [], len(update.terms)
        batch.append(update)
    if batch:
        yield batch
