"""The words everybody uses: members, plans, updates, jobs and rollouts.  Plain data, no behaviour."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, NamedTuple

__version__ = "0.1.0"

Message = Mapping[str, str]
"""One chat message: ``{"role": "user", "content": "..."}``."""

Finish = Literal["stop", "length"]
"""Why a completion ended: a stop token or string, or the token limit."""

_LABEL = re.compile(r"(?:(\d+):)?(\d+)([+-])")


class Member(NamedTuple):
    """One perturbed model: θ + sign·σ·ε(generation, pair).  ``sign`` 0 is the unperturbed model, θ itself.

    ``generation`` is the generation of the noise's address; it differs from the generation being
    evaluated only where a strategy reuses noise.
    """

    generation: int
    pair: int
    sign: int

    def label(self, generation: int) -> str:
        """The short form the ledger uses: ``3+``, ``3-``, or ``7:3+`` for noise of another generation."""
        if self.sign == 0:
            return "unperturbed"
        prefix = "" if self.generation == generation else f"{self.generation}:"
        return f"{prefix}{self.pair}{'+' if self.sign > 0 else '-'}"

    @classmethod
    def parse(cls, label: str, generation: int) -> Member:
        """The member a ``label`` of that generation names; ValueError if it is not one."""
        if label == "unperturbed":
            return UNPERTURBED
        match = _LABEL.fullmatch(label)
        if match is None:
            raise ValueError(f"not a member label: {label!r}")
        noise, pair, sign = match.groups()
        return cls(int(noise) if noise else generation, int(pair), 1 if sign == "+" else -1)


UNPERTURBED = Member(0, 0, 0)
"""The unperturbed weights as a member."""


class Term(NamedTuple):
    """One summand of an update: weight · ε(generation, pair), the weight with α/N already in it."""

    generation: int
    pair: int
    weight: float


@dataclass(frozen=True, slots=True)
class Decay:
    """Proximal pull to the base weights θ₀ after the step (Overcoming Forgetting, arXiv 2605.30148).

    d = θ − θ₀;  d ← (1 − ``l2``)·d;  d ← sign(d)·max(|d| − ``l1``, 0);  θ = θ₀ + d, with l2 = αλ₂ and l1 = αλ₁.
    """

    l2: float = 0.0
    l1: float = 0.0


@dataclass(frozen=True, slots=True)
class Update:
    """θ ← θ + Σ weight·ε(generation, pair), summed in the order given, then the ``decay`` if there is one.

    ``generation`` addresses the stochastic rounding of 16-bit weights.
    """

    generation: int
    terms: tuple[Term, ...]
    decay: Decay | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """θ' = θ + Σ weight·ε(generation, pair): where members are perturbed from, and the current weights stay.

    With ``length`` the sum is scaled so that ‖θ' − θ‖₂ over all trained elements is that.
    """

    terms: tuple[Term, ...]
    length: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a strategy asks for: the members to evaluate, the σ they are perturbed with, and from where."""

    generation: int
    sigma: float
    members: tuple[Member, ...]
    shift: Shift | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn.  ``temperature`` 0 is greedy; draws are equal for every member.

    ``max_tokens`` counts new tokens; ``stop`` holds strings that end a completion (not part of it);
    ``seed`` and ``generation`` address the draws; ``samples`` completions are drawn per prompt.
    ``ignore_eos`` keeps going to the limit (benchmarks).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    generation: int = 0
    samples: int = 1
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as the engine takes it: chat messages (templated) or plain text (as it is).

    ``max_tokens``, if given, lowers the job's limit of new tokens for this prompt.  ``turn`` and ``sample`` (the number
    of its first sample) are where a conversation stands: with ``id`` they address the draws.  What a later turn may
    write is cut to the room left in the model's context; without any the completion is empty, its finish "length".
    ``answers`` are for `Engine.likelihoods`.
    """

    id: int
    content: str | tuple[Message, ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    turn: int = 0
    sample: int = 0
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A fixed group of members on the same prompts: the unit that is batched, sent and retried.

    The group never depends on the number of workers, so that batch composition never changes a reward.
    With a ``shift`` members (the unperturbed one, too) are perturbed from θ' instead of θ.  ``rows`` are the (member,
    prompt) positions to evaluate, each once; None: every member answers every prompt.
    """

    id: int
    sigma: float
    members: tuple[Member, ...]
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    shift: Shift | None = None
    rows: tuple[tuple[int, int], ...] | None = None
    tokens: bool = True
    """Rollouts are to hold their token ids; without, an engine that is far away sends how many there are."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The (member, prompt) positions to evaluate."""
        return tuple(product(range(len(self.members)), range(len(self.prompts)))) if self.rows is None else self.rows


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How many tokens a completion has, and whether it ends in a repetition."""

    count: int
    repeating: bool


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt by one member; ``prompt`` is the position in the job's prompts.

    ``counted`` stands for token ids that nobody asked for (`seedtune.types.tokens` reads both).

    ``scores`` has a value for each reward of the task where the rollout was scored while it was made (a conversation, a
    likelihood), NaN for what failed; None: rewards are still to score its text.
    """

    job: int
    member: Member
    prompt: int
    sample: int
    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish: Finish
    scores: tuple[float, ...] | None = None
    counted: TokenCount | None = None


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How probable one of a prompt's answers is to a member: log p of every token of it, temperature 1.

    ``prompt`` is the position in the job's prompts, ``answer`` the position in the prompt's answers.
    """

    job: int
    member: Member
    prompt: int
    answer: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Coverage:
    """Which share of a model's parameters a perturbation reaches, and which tensors it does not."""

    perturbed: int
    total: int
    unperturbed: tuple[tuple[str, str], ...]
    """(pattern of names, reason) of everything left as it is."""

    @property
    def fraction(self) -> float:
        """Perturbed parameters over all parameters, tied weights counted once."""
        return self.perturbed / max(1, self.total)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task: the prompt, and the columns its rewards receive."""

    id: int
    prompt: str | tuple[Message, ...]
    columns: Mapping[str, Any]


WINDOW = 64
"""Tokens at the end of a completion that are searched for repetitions: long answers return to earlier words anyway."""

SHORTEST = 12
"""Tokens below which a completion is not called repeating."""

REPEATED = 0.2
"""Share of three-token sequences that occurred before from which on a completion is called repeating."""


def tokens(rollout: Rollout) -> TokenCount:
    """How many tokens a completion has and whether it ends in a repetition, whoever counted."""
    if rollout.counted is not None:
        return rollout.counted
    return TokenCount(len(rollout.token_ids), repeats(rollout.token_ids))


def length(rollout: Rollout) -> int:
    """How many tokens a completion has."""
    return len(rollout.token_ids) if rollout.counted is None else rollout.counted.count


def repeats(tokens: Sequence[object]) -> bool:
    """Whether over a fifth of the three-token sequences in the last 64 tokens (or words) occurred before in them."""
    tail = tokens[-WINDOW:]
    if len(tail) < SHORTEST:
        return False
    triples = list(zip(tail, tail[1:], tail[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) > REPEATED
