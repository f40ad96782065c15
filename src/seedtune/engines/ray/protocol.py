"""Messages between driver and workers, as msgpack bytes: jobs out, results back, nothing of a model's size.

Every message is checked when it is decoded, and errors are restored to their types.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

from msgspec import Raw

from seedtune import errors
from seedtune.engines.base import EngineInfo
from seedtune.engines.codec import CompactUpdate, TermColumns, decode, encode
from seedtune.errors import EngineError, SeedtuneError
from seedtune.types import Job, Likelihood, Member, Prompt, Rollout, Sampling, Shift, Update

MALFORMED = (ValueError, LookupError, zlib.error)
"""The errors of decoding a message that is damaged, or that does not match its request."""

TEXTS, BYTES = 1 << 16, 1 << 26
"""Maximum texts, and bytes of texts, that a worker caches; beyond a limit it clears its cache."""


# ------------------------------------------------------------------------------------------- requests and replies


class StartWeights(NamedTuple):
    """The weights that a worker loads: the base model or those of a snapshot, with its fingerprint if known."""

    snapshot: str | None
    fingerprint: str | None


class Sync(NamedTuple):
    """The updates that bring a worker from ``position`` to the weights that a request assumes, after a ``start``."""

    epoch: int
    start: StartWeights | None
    position: int
    updates: Sequence[CompactUpdate]


class Call(NamedTuple):
    """A request: an operation of a worker (see `worker.types_of`), its encoded arguments, and what to do first."""

    operation: str
    arguments: Mapping[str, Raw]
    sync: Sync


class Reply(NamedTuple):
    """A worker's reply: an encoded ``result``, or an error by the name of its class, with its message."""

    result: Raw
    error_class: str
    message: str
    epoch: int
    position: int
    synced: float
    """Seconds spent on updates."""

    worked: float
    """Seconds spent on the work."""

    times: tuple[float, float, float, float, int, int] | None = None
    """The first fields of `EngineTimes`; None if all are 0."""

    @property
    def behind(self) -> bool:
        """Whether the worker's weights are not at the position the request assumes."""
        return self.error_class == BehindError.__name__

    @property
    def error(self) -> SeedtuneError | None:
        """The error as it was raised in the worker; `EngineError` if the worker is no longer reliable."""
        if not self.error_class:
            return None
        found = vars(errors).get(self.error_class)
        if found is None or found is EngineError:
            return EngineError(self.message if found else f"{self.error_class}: {self.message}")
        made: SeedtuneError = found.__new__(found)  # `__init__` of some classes would compose the message once more
        Exception.__init__(made, self.message)
        return made


class BehindError(Exception):
    """The weights lack the updates that a request assumes."""


class Enrolment(NamedTuple):
    """A loaded worker's process, host and engine."""

    pid: int
    host: str
    info: EngineInfo


# ------------------------------------------------------------------------------------------------------------ jobs


@dataclass(slots=True)
class SentTexts:
    """The texts that a worker has cached, each with its number: how many were sent before it."""

    numbers: dict[bytes, int] = field(default_factory=dict)
    """By hash."""

    size: int = 0
    """Bytes of all texts."""

    def number(self, text: bytes, new: list[bytes]) -> int:
        """Return the number of a text, which is added to ``new`` if the worker lacks it."""
        key = hashlib.blake2b(text, digest_size=8).digest()
        if key not in self.numbers:
            self.numbers[key] = len(self.numbers)
            self.size += len(text)
            new.append(text)
        return self.numbers[key]


class PromptNumbers(NamedTuple):
    """The numbers of a job's prompts, and how to sample."""

    prompts: list[int]
    sampling: Sampling


class JobMessage(NamedTuple):
    """A job for a worker: its question by number, and the texts of prompts and questions that the worker lacks."""

    id: int
    sigma: float
    members: Sequence[Member]
    forget: bool
    """Whether numbers restart: the worker clears its cache."""

    texts: list[bytes]
    question: int
    shift: TermColumns | None
    shift_length: float | None
    rows: Sequence[tuple[int, int]] | None
    tokens: bool

    @classmethod
    def of(cls, job: Job, sent: SentTexts) -> JobMessage:
        """Encode a job, with only the prompts that its rows use."""
        if len(sent.numbers) > TEXTS or sent.size > BYTES:
            sent.numbers.clear()
            sent.size = 0
        assert not isinstance(job.shift, Update), "only engines of this process take an update"
        forget, new, asked = not sent.numbers, list[bytes](), _asked(job)
        question = PromptNumbers([sent.number(encode(job.prompts[prompt]), new) for prompt in asked], job.sampling)
        place = {prompt: index for index, prompt in enumerate(asked)}
        return cls(
            job.id,
            job.sigma,
            job.members,
            forget,
            new,
            sent.number(encode(question), new),
            None if job.shift is None else TermColumns.of(job.shift.terms),
            None if job.shift is None else job.shift.length,
            None if job.rows is None else [(member, place[prompt]) for member, prompt in job.rows],
            job.tokens,
        )

    def job(self, cached: list[bytes]) -> Job:
        """Decode the job, with the texts that the worker has ``cached``."""
        if self.forget:
            cached.clear()
        cached += self.texts
        question = decode(cached[self.question], PromptNumbers)
        return Job(
            self.id,
            self.sigma,
            tuple(self.members),
            tuple(decode(cached[number], Prompt) for number in question.prompts),
            question.sampling,
            None if self.shift is None else Shift(self.shift.terms(), self.shift_length),
            None if self.rows is None else tuple(self.rows),
            self.tokens,
        )


def _asked(job: Job) -> list[int]:
    """Return the prompts that a job's rows use, in order: a worker's job has no others."""
    return sorted({prompt for _, prompt in job.pairs})


# --------------------------------------------------------------------------------------------------------- results

Result = TypeVar("Result", Rollout, Likelihood)


def pack(found: Iterable[Rollout | Likelihood]) -> bytes:
    """Encode and compress the results of a job."""
    return zlib.compress(encode(list(found)))


def unpack(packed: bytes, kind: type[Result], job: Job) -> list[Result]:
    """Decode the results of a job; `MALFORMED` if they do not match it."""
    asked = _asked(job)
    found: list[Result] = decode(zlib.decompress(packed), list[kind])  # type: ignore[valid-type]
    if any(result.job != job.id or result.member not in job.members or result.prompt < 0 for result in found):
        raise ValueError("it has results of another job")
    return [replace(result, prompt=asked[result.prompt]) for result in found]
