"""Messages between driver and workers, as msgpack bytes: jobs out, results back, nothing of a model's size.

Results are columns in the order of the job's rows, so that a completion costs its text and a few bytes.

Replies are validated when they are decoded, and errors are restored to their types.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgpack  # type: ignore[import-untyped, unused-ignore]

from seedtune import errors
from seedtune.engines import compact_codec
from seedtune.engines.base import EngineInfo, EngineTimes
from seedtune.engines.codec import Plain
from seedtune.errors import EngineError, SeedtuneError
from seedtune.types import (
    Coverage,
    Finish,
    Job,
    Likelihood,
    Member,
    Prompt,
    Rollout,
    Sampling,
    TokenCount,
    length,
    tokens,
)

FINISHES: tuple[Finish, Finish] = ("stop", "length")
KEY = 8
"""Bytes of the hash that identifies a prompt or a question."""

PROMPTS, BYTES, QUESTIONS = 1 << 16, 1 << 26, 1 << 10
"""Maximum prompts, bytes of prompts, and questions that a worker caches; beyond a limit it clears its cache."""


def pack(data: Plain) -> bytes:
    """Encode plain data as bytes."""
    packed: bytes = msgpack.packb(data, use_bin_type=True)
    return packed


def unpack(raw: bytes) -> Plain:
    """Decode the result of `pack`; EngineError if the bytes are malformed."""
    try:
        return msgpack.unpackb(raw, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise EngineError(f"not a message of a Ray worker: {error}") from error


@dataclass(slots=True)
class Traffic:
    """Bytes that passed through the driver, and how many of them were texts."""

    sent: int = 0
    received: int = 0
    prompts: int = 0
    """Bytes of prompts sent; each prompt counts once for every worker that reads it."""

    completions: int = 0
    """Bytes received in completions' texts and, where requested, their tokens."""

    members: int = 0
    """Members whose results arrived."""


@dataclass(slots=True)
class Known:
    """What a worker has cached: single prompts, and whole questions (prompts in order, with their sampling)."""

    prompts: dict[bytes, int] = field(default_factory=dict)
    """Number of each prompt: how many were sent before it."""

    questions: set[bytes] = field(default_factory=set)
    bytes: int = 0
    """Bytes of the cached prompts."""


@dataclass(slots=True)
class PromptCache:
    """The worker's counterpart of `Known`."""

    prompts: list[Prompt] = field(default_factory=list)
    questions: dict[bytes, tuple[tuple[Prompt, ...], Sampling]] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------- jobs


def job(one: Job, known: Known, traffic: Traffic) -> Plain:
    """Encode a job for a worker, with its question only if the worker lacks it, and only the prompts that rows use."""
    asked = sorted({prompt for _, prompt in one.pairs})
    packed = [pack(_prompt(one.prompts[place])) for place in asked]
    how = pack(_sampling(one.sampling))
    key = _key(how, *packed)
    question = None if key in known.questions else _question(packed, how, known, traffic)
    known.questions.add(key)
    rows = None
    if one.rows is not None:
        place_of = {place: index for index, place in enumerate(asked)}
        rows = [number for member, prompt in one.rows for number in (member, place_of[prompt])]
    return [one.id, one.sigma, members(one.members), key, question, compact_codec.shift(one.shift), rows, one.tokens]


def _question(packed: Sequence[bytes], how: bytes, known: Known, traffic: Traffic) -> Plain:
    """Encode [forget, new prompts, all prompts' numbers, sampling]; numbers restart when the worker must forget."""
    full = len(known.prompts) + len(packed) > PROMPTS or known.bytes > BYTES or len(known.questions) > QUESTIONS
    forget = full or not known.prompts
    if forget:
        known.prompts.clear()
        known.questions.clear()
        known.bytes = 0
    keys = [_key(text) for text in packed]
    new = {key: text for key, text in zip(keys, packed, strict=True) if key not in known.prompts}
    known.prompts |= {key: number for number, key in enumerate(new, start=len(known.prompts))}
    known.bytes += sum(map(len, new.values()))
    traffic.prompts += sum(map(len, new.values()))
    return [forget, list(new.values()), [known.prompts[key] for key in keys], how]


def job_from(data: Plain, memory: PromptCache) -> Job:
    """Decode a job, with the worker's cached prompts."""
    number, sigma, listed, key, question, moved, rows, tokens = data
    if question is not None:
        _learn(memory, key, question)
    prompts, sampling = memory.questions[key]
    pairs = None if rows is None else tuple(zip(rows[::2], rows[1::2], strict=True))
    return Job(number, sigma, members_from(listed), prompts, sampling, compact_codec.shift_from(moved), pairs, tokens)


def _learn(memory: PromptCache, key: bytes, question: Plain) -> None:
    forget, new, numbers, how = question
    if forget:
        memory.prompts.clear()
        memory.questions.clear()
    memory.prompts += [_prompt_from(unpack(text)) for text in new]
    chosen = tuple(memory.prompts[number] for number in numbers)
    memory.questions[key] = chosen, _sampling_from(unpack(how))


def _key(*texts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY)
    for text in texts:
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.digest()


def members(listed: Sequence[Member]) -> Plain:
    """Encode members as [generation, pair, sign, …] in one list."""
    return [number for member in listed for number in member]


def members_from(data: Plain) -> tuple[Member, ...]:
    """Decode the result of `members`."""
    return tuple(Member(*data[at : at + 3]) for at in range(0, len(data), 3))


def _prompt(one: Prompt) -> Plain:
    content = one.content if isinstance(one.content, str) else [dict(message) for message in one.content]
    return [one.id, content, dict(one.template_kwargs), one.max_tokens, one.turn, one.sample, list(one.answers)]


def _prompt_from(data: Plain) -> Prompt:
    number, content, kwargs, limit, turn, sample, answers = data
    told = content if isinstance(content, str) else tuple(content)
    return Prompt(number, told, kwargs, limit, turn, sample, tuple(answers))


def _sampling(one: Sampling) -> Plain:
    return [
        one.max_tokens,
        one.temperature,
        one.top_p,
        list(one.stop),
        one.seed,
        one.generation,
        one.samples,
        one.ignore_eos,
    ]


def _sampling_from(data: Plain) -> Sampling:
    limit, temperature, top_p, stop, seed, generation, samples, ignore_eos = data
    return Sampling(limit, temperature, top_p, tuple(stop), seed, generation, samples, ignore_eos)


# ---------------------------------------------------------------------------------------------- answers


def rollouts(one: Job, found: Iterable[Rollout]) -> Plain:
    """Encode rollouts as columns: [missing, texts, prompt tokens, cut off, token ids or counts, repeating]."""
    order = {place: index for index, place in enumerate(_places(one))}
    rows: list[Rollout | None] = [None] * len(order)
    for rollout in found:
        rows[order[rollout.member, rollout.prompt, rollout.sample]] = rollout
    there = [row for row in rows if row is not None]
    return [
        [index for index, row in enumerate(rows) if row is None],
        zlib.compress(pack([row.text for row in there]), 1),
        _read(there, len(one.prompts)),
        _bits([row.finish == "length" for row in there]),
        _ids([row.token_ids for row in there]) if one.tokens else pack([length(row) for row in there]),
        b"" if one.tokens else _bits([tokens(row).repeating for row in there]),
    ]


def _ids(rows: Sequence[Sequence[int]]) -> bytes:
    return zlib.compress(pack([list(row) for row in rows]), 1)


def _read(rows: Sequence[Rollout], prompts: int) -> list[int]:
    """Return the token count of every prompt; 0 where no row reports it."""
    found = [0] * prompts
    for row in rows:
        found[row.prompt] = row.prompt_tokens
    return found


def _bits(flags: Sequence[bool]) -> bytes:
    return sum(flag << place for place, flag in enumerate(flags)).to_bytes((len(flags) + 7) // 8, "little")


def _bits_from(raw: bytes, size: int) -> list[bool]:
    number = int.from_bytes(raw, "little")
    return [bool(number >> place & 1) for place in range(size)]


def rollouts_from(one: Job, data: Plain, traffic: Traffic) -> list[Rollout]:
    """Decode the rollouts of a job; EngineError if they do not match it."""
    try:
        return _rollouts_from(one, data, traffic)
    except (LookupError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise EngineError(f"a malformed reply ({type(error).__name__}: {error})") from error


def _rollouts_from(one: Job, data: Plain, traffic: Traffic) -> list[Rollout]:
    missing, packed, prompt_tokens, cut, counted, repeating = data
    places = [place for index, place in enumerate(_places(one)) if index not in set(missing)]
    read = dict(zip(sorted({prompt for _, prompt in one.pairs}), prompt_tokens, strict=True))
    texts = unpack(zlib.decompress(packed))
    ids: list[tuple[int, ...]] = [()] * len(places)
    known: list[TokenCount | None] = [None] * len(places)
    if one.tokens:
        ids = [tuple(row) for row in unpack(zlib.decompress(counted))]
    else:
        flags = _bits_from(repeating, len(places))
        known = [TokenCount(*pair) for pair in zip(unpack(counted), flags, strict=True)]
    traffic.completions += len(packed) + (len(counted) if one.tokens else 0)
    traffic.members += len(one.members)
    finishes = [FINISHES[flag] for flag in _bits_from(cut, len(places))]
    return [
        Rollout(one.id, member, prompt, sample, _text(text), its, read[prompt], finish, counted=count)
        for (member, prompt, sample), text, its, finish, count in zip(places, texts, ids, finishes, known, strict=True)
    ]


def _text(data: Plain) -> str:
    if not isinstance(data, str):
        raise TypeError(f"{data!r} is no text")
    return data


def _places(one: Job) -> list[tuple[Member, int, int]]:
    """Return member, prompt and sample of every completion of a job, in order."""
    return [(one.members[m], p, s) for m, p in one.pairs for s in range(one.sampling.samples)]


def likelihoods(found: Iterable[Likelihood]) -> Plain:
    """Encode log-probabilities, each with its member, prompt and answer."""
    return [[*f.member, f.prompt, f.answer, list(f.token_ids), list(f.logprobs), f.prompt_tokens] for f in found]


def likelihoods_from(one: Job, data: Plain, traffic: Traffic) -> list[Likelihood]:
    """Decode the result of `likelihoods`; EngineError if it does not match the job."""
    asked = sorted({prompt for _, prompt in one.pairs})
    try:
        found = [
            Likelihood(one.id, Member(*row[:3]), asked[row[3]], row[4], tuple(row[5]), tuple(row[6]), row[7])
            for row in data
        ]
    except (IndexError, TypeError, ValueError) as error:
        raise EngineError(f"a malformed reply ({type(error).__name__}: {error})") from error
    traffic.completions += sum(len(pack(row[5])) + len(pack(row[6])) for row in data)
    traffic.members += len(one.members)
    return found


# ------------------------------------------------------------------------------------------------- rest


def info(one: EngineInfo) -> Plain:
    """Encode the description of a loaded engine."""
    return {**{name: getattr(one, name) for name in _INFO}, "coverage": list(_of_coverage(one.coverage))}


def info_from(data: Plain) -> EngineInfo:
    """Decode the result of `info`."""
    perturbed, total, untouched = data["coverage"]
    coverage = Coverage(perturbed, total, tuple((pattern, reason) for pattern, reason in untouched))
    return EngineInfo(**{name: data[name] for name in _INFO}, coverage=coverage)


_INFO = ("model", "base_fingerprint", "dtype", "device", "weights_dtype", "arithmetic", "products")


def _of_coverage(one: Coverage) -> tuple[int, int, list[list[str]]]:
    return one.perturbed, one.total, [list(pair) for pair in one.unperturbed]


def times(one: EngineTimes, synced: float, worked: float) -> bytes:
    """Encode all times and counts, in order, and the seconds spent on updates and on the work."""
    mine = struct.pack("<2f", synced, worked)
    if one == EngineTimes():
        return mine
    seconds = (one.perturb, one.prefill, one.decode, one.update)
    return mine + struct.pack("<4f2I", *seconds, one.generated_tokens, one.prompt_tokens)


def times_from(raw: bytes) -> tuple[EngineTimes, float, float]:
    """Decode the result of `times`."""
    synced, worked = struct.unpack("<2f", raw[:8])
    if len(raw) == 8:
        return EngineTimes(), synced, worked
    perturb, prefill, decode, update, generated, prompted = struct.unpack("<4f2I", raw[8:])
    return EngineTimes(perturb, prefill, decode, update, generated, prompted), synced, worked


def prompts(listed: Sequence[Prompt]) -> Plain:
    """Encode prompts without a job."""
    return [_prompt(one) for one in listed]


def prompts_from(data: Plain) -> tuple[Prompt, ...]:
    """Decode the result of `prompts`."""
    return tuple(map(_prompt_from, data))


UNKNOWN = "unknown"
"""The kind of an error that seedtune does not define."""

BEHIND = "behind"
"""The kind of an error that requests the updates this worker misses."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A worker's reply: ``done``, or an error of a ``kind`` with its ``message``."""

    done: Plain
    kind: str | None
    message: str
    epoch: int
    position: int
    synced: float
    worked: float
    times: EngineTimes

    @property
    def behind(self) -> bool:
        """Whether the worker's weights are not at the position the request assumes."""
        return self.kind == BEHIND

    @property
    def broken(self) -> bool:
        """Whether the engine failed, so that this worker is no longer reliable; another worker may succeed."""
        return self.kind in (UNKNOWN, EngineError.__name__)

    def error(self) -> SeedtuneError:
        """Return the error, as it was raised in the worker."""
        assert self.kind is not None
        found: type[SeedtuneError] = vars(errors).get(self.kind, EngineError)
        made = found.__new__(found)  # MissingExtraError composes its message in __init__; this one is already composed
        Exception.__init__(made, self.message)
        return made


def reply_from(raw: bytes) -> Reply:
    """Decode a reply; EngineError if it is malformed."""
    data = unpack(raw)
    try:
        done, told, epoch, position, raw_times = data
        kind, message = (None, "") if told is None else told
        times, synced, worked = times_from(raw_times)
        return Reply(done, kind, str(message), int(epoch), int(position), synced, worked, times)
    except (TypeError, ValueError, struct.error) as error:
        raise EngineError(f"a malformed reply ({type(error).__name__}: {error})") from error
