"""Shared data types: members, plans, updates, jobs and rollouts.  Plain data without behaviour."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from itertools import product
from typing import Any, Literal, NamedTuple

try:
    __version__ = metadata.version("seedtune")  # from git tags, when the package was built
except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
    __version__ = "0+unknown"

Message = Mapping[str, str]
"""One chat message: ``{"role": "user", "content": "..."}``."""

Finish = Literal["stop", "length"]
"""Why a completion ended: a stop token or string, or the token limit."""

COUNT = 1_000_000
"""Upper bound of settings that count members, prompts, rows or tokens of one generation."""

STEPS = 10_000_000
"""Upper bound of settings that count generations."""

_LABEL = re.compile(r"(?:([0-9]{1,10}):)?([0-9]{1,10})([+-])")


class Member(NamedTuple):
    """One perturbed model: θ + sign·σ·ε(generation, pair).  ``sign`` 0 is the unperturbed model, θ itself.

    ``generation`` is the generation of the noise's address; it differs from the generation being
    evaluated only where a strategy reuses noise.
    """

    generation: int
    pair: int
    sign: int

    def label(self, generation: int) -> str:
        """Return the short form of the ledger: ``3+``, ``3-``, or ``7:3+`` for noise of another generation."""
        if self.sign == 0:
            return "unperturbed"
        prefix = "" if self.generation == generation else f"{self.generation}:"
        return f"{prefix}{self.pair}{'+' if self.sign > 0 else '-'}"

    @classmethod
    def parse(cls, label: str, generation: int) -> Member:
        """Parse a label of that generation; raise ValueError if it is malformed."""
        if label == "unperturbed":
            return UNPERTURBED
        match = _LABEL.fullmatch(label)
        if match is None:
            raise ValueError(f"not a member label: {label[:40]!r}")
        noise, pair, sign = match.groups()
        member = cls(int(noise) if noise else generation, int(pair), 1 if sign == "+" else -1)
        if max(member.generation, member.pair) >= 2**32:
            raise ValueError(f"not a member label: {label!r} is over 32 bits")
        return member


UNPERTURBED = Member(0, 0, 0)
"""The unperturbed model, θ, as a member."""


class Term(NamedTuple):
    """One summand of an update: weight · ε(generation, pair), where the weight includes α/N."""

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
    """θ ← θ + Σ weight·ε(generation, pair), summed in the given order, followed by the ``decay`` if there is one.

    ``generation`` addresses the stochastic rounding of 16-bit weights.
    """

    generation: int
    terms: tuple[Term, ...]
    decay: Decay | None = None


@dataclass(frozen=True, slots=True)
class Shift:
    """θ' = θ + Σ weight·ε(generation, pair), the point that members perturb; the current weights do not change.

    With ``length`` the sum is scaled so that ‖θ' − θ‖₂ = length over all trained elements.
    """

    terms: tuple[Term, ...]
    length: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A strategy's request: the members to evaluate, their σ, and the ``shift`` of the point they perturb."""

    generation: int
    sigma: float
    members: tuple[Member, ...]
    shift: Shift | None = None


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters.  ``temperature`` 0 is greedy; random draws are equal for every member.

    ``max_tokens`` limits new tokens; ``stop`` holds strings that end a completion (excluded from it), and
    ``stop_token_ids`` tokens that do, besides the model's own;
    ``seed`` and ``generation`` address the draws; ``samples`` completions are drawn per prompt.
    ``ignore_eos`` generates up to the limit (benchmarks).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    generation: int = 0
    samples: int = 1
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt as an engine receives it: chat messages (put through the template) or plain text (unchanged).

    ``max_tokens``, if given, lowers the job's limit of new tokens for this prompt.  ``turn`` and ``sample`` (the index
    of its first sample) locate it in a conversation; together with ``id`` they address the draws.  In later turns new
    tokens are limited to the room left in the model's context; with no room left the completion is empty and its
    finish is "length".  ``answers`` are for `Engine.likelihoods`.
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
    """A fixed group of members with common prompts: the unit of batching, sending and retrying.

    The group never depends on the number of workers, so that batch composition never changes a reward.
    With a ``shift`` members (including the unperturbed one) perturb θ' instead of θ; for an engine of this process it
    may be an update, such as the one back to θ₀.  ``rows`` are the (member, prompt) positions to evaluate, each once;
    None: every member answers every prompt.
    """

    id: int
    sigma: float
    members: tuple[Member, ...]
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    shift: Shift | Update | None = None
    rows: tuple[tuple[int, int], ...] | None = None
    tokens: bool = True
    """Whether rollouts must hold their token ids; if not, a remote engine may send a `TokenCount` instead."""

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The (member, prompt) positions to evaluate."""
        return tuple(product(range(len(self.members)), range(len(self.prompts)))) if self.rows is None else self.rows


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The number of tokens of a completion, and whether it ends in a repetition."""

    count: int
    repeating: bool


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of one prompt by one member; ``prompt`` is the index in the job's prompts.

    ``counted`` replaces token ids that the job did not request (`seedtune.types.tokens` reads both).

    ``scores`` has a value per reward of the task if the rollout was scored during generation (a conversation, a
    likelihood), NaN for a failed reward; None: the text has not been scored yet.
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
    """A member's log-probability of each token of one reference answer, at temperature 1.

    ``prompt`` is the index in the job's prompts, ``answer`` the index in the prompt's answers.
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
    """The number of parameters that a perturbation reaches, and the tensors that it leaves unchanged."""

    perturbed: int
    total: int
    unperturbed: tuple[tuple[str, str], ...]
    """(name pattern, reason) of all tensors that are not perturbed."""

    @property
    def fraction(self) -> float:
        """Perturbed parameters divided by all parameters, with tied weights counted once."""
        return self.perturbed / max(1, self.total)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a task: the prompt, and the columns passed to its rewards."""

    id: int
    prompt: str | tuple[Message, ...]
    columns: Mapping[str, Any]


def begun(prompt: str | Sequence[Message]) -> tuple[str | tuple[Message, ...], str]:
    """Split the text of an assistant message that the model continues from the end of a prompt; "" without one."""
    if isinstance(prompt, str) or prompt[-1].get("role") != "assistant":
        return (prompt if isinstance(prompt, str) else tuple(prompt)), ""
    return tuple(prompt[:-1]), prompt[-1].get("content") or ""


def tokens(rollout: Rollout) -> TokenCount:
    """Return the token count of a completion, as sent by the engine or computed from its token ids."""
    if rollout.counted is not None:
        return rollout.counted
    return TokenCount(len(rollout.token_ids), repeats(rollout.token_ids))


def length(rollout: Rollout) -> int:
    """Return the number of tokens of a completion."""
    return len(rollout.token_ids) if rollout.counted is None else rollout.counted.count


def repeats(tokens: Sequence[object]) -> bool:
    """Whether over a fifth of the three-token sequences in the last 64 tokens (or words) occurred before among them.

    Only the end is searched, since any long text repeats earlier words; fewer than 12 tokens do not count.
    """
    tail = tokens[-64:]
    triples = list(zip(tail, tail[1:], tail[2:], strict=False))
    return len(tail) >= 12 and 1 - len(set(triples)) / len(triples) > 0.2
