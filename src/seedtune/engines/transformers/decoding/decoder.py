"""The decode loop: rows occupy slots, finished rows leave at once, waiting rows take their place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.base import EngineTimes
from seedtune.engines.transformers.decoding import sampling
from seedtune.engines.transformers.decoding.likelihood import ForcedSequence
from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack, packed
from seedtune.engines.transformers.decoding.slot_attention import Decode, Prefill, SlotAttention
from seedtune.engines.transformers.members.gaussian import Gaussian
from seedtune.engines.transformers.members.linear_members import LinearMembers
from seedtune.engines.transformers.tokenization import ModelTokenizer
from seedtune.types import Finish, Job, Rollout, Sampling

_PADDED = 4
"""Padded tokens of prompts with shared prefixes may be this many times the computed ones (attention pads prompts)."""

_REFILL = 8
"""While rows are decoding, a prefill pass waits until one slot in so many is free."""

_ROWS = 256
"""Rows of the vocabulary converted to float32 at a time."""


@dataclass(slots=True)
class DecodeSequence:
    """One completion in progress: ``member`` and ``prompt`` are positions in the job."""

    member: int
    prompt: int
    sample: int
    prompt_ids: Sequence[int]
    limit: int
    draws: np.ndarray | None
    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None

    @property
    def length(self) -> int:
        """Number of filled cache positions: the prompt and all new tokens but the last."""
        return len(self.prompt_ids) + len(self.tokens) - 1


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop conditions of a row, which are no part of its text: token ids, or strings found in its decoded tail."""

    token_ids: frozenset[int]
    strings: tuple[str, ...]
    tokenizer: ModelTokenizer
    special: frozenset[str] = frozenset()
    """The strings with special tokens, which are searched in text that has them."""

    @classmethod
    def of(cls, sampling: Sampling, eos: frozenset[int], tokenizer: ModelTokenizer) -> Stop:
        """Return the conditions of a job for a model with the end tokens ``eos``."""
        ends = frozenset[int]() if sampling.ignore_eos else eos
        special = frozenset(filter(tokenizer.has_special, sampling.stop))
        return cls(ends.union(sampling.stop_token_ids), sampling.stop, tokenizer, special)

    def reached(self, row: DecodeSequence) -> Finish | None:
        """Return why ``row`` ends with its last token, or None if it continues."""
        if row.tokens[-1] in self.token_ids:
            return "stop"
        if self.strings and self._in_tail(row):
            return "stop"
        return "length" if len(row.tokens) >= row.limit else None

    def _in_tail(self, row: DecodeSequence) -> bool:
        """Return whether a stop string has just appeared; a character takes at most four tokens (one per byte)."""
        tail = row.tokens[-4 * (max(map(len, self.strings)) + 1) :]
        text, whole = self.tokenizer.decode(tail), self.tokenizer.decode(tail, special=True) if self.special else ""
        return any(string in (whole if string in self.special else text) for string in self.strings)

    def text(self, tokens: list[int]) -> str:
        """Return the text of a finished row, without the string or token that ended it."""
        text = self.tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in self.token_ids else tokens)
        for string in self.strings:
            text = text.split(string, 1)[0]
        for string in self.special:
            before, found, _ = self.tokenizer.decode(tokens, special=True).partition(string)
            text = min(text, self.tokenizer.without_special(before), key=len) if found else text
        return text


@dataclass(frozen=True, slots=True)
class Decoder:
    """Runs the sequences of one job through the model; the caller has set the members.

    At most ``slots`` rows are in flight, and ``prefill_tokens`` prompt tokens in one forward pass.  Passes are timed by
    the clock alone: each ends with its tokens on the host, so the device has done its work by then.
    """

    model: Any
    attention: SlotAttention
    perturbation: Gaussian | LinearMembers
    slots: int
    prefill_tokens: int
    times: EngineTimes

    @torch.no_grad()
    def run(self, rows: Sequence[DecodeSequence], params: Sampling, stop: Stop) -> Iterator[DecodeSequence]:
        """Yield each row when it is finished, in the order of finishing."""
        waiting, running = deque(rows), list[DecodeSequence]()
        while waiting or running:
            free = self.slots - len(running)
            if waiting and (not running or free >= min(len(waiting), max(1, self.slots // _REFILL))):
                self._admit(waiting, running, params)
            else:
                self._step(running, params)
            yield from self._retire(running, stop)

    def _admit(self, waiting: deque[DecodeSequence], running: list[DecodeSequence], params: Sampling) -> None:
        """Prefill as many waiting rows as slots and the pass allow, and choose their first tokens."""
        started = time.perf_counter()
        first, tokens = list(islice(waiting, self.slots - len(running))), self.prefill_tokens
        members, prompts = [row.member for row in first], [row.prompt_ids for row in first]
        pack = packed(len(running), members, prompts, tokens=tokens, padded=_PADDED * tokens)
        batch = [waiting.popleft() for _ in pack.paths]
        self._choose(batch, self._prefill(pack, np.array(pack.last())), params)
        running += batch
        self.times.prefill += time.perf_counter() - started
        self.times.prompt_tokens += sum(pack.lengths)
        self.times.generated_tokens += len(batch)

    def _prefill(self, pack: PrefixPack, keep: np.ndarray) -> Tensor:
        """Return logits of the tokens ``keep`` of a pack."""
        members = np.array(pack.members)
        self.perturbation.set_rows(members, members[keep])
        return self.attention.run(
            self.model, pack.ids, pack.positions, Prefill.of(pack, self.model.device), torch.from_numpy(keep)
        )

    def _step(self, running: list[DecodeSequence], params: Sampling) -> None:
        """Generate one token for every running row."""
        started = time.perf_counter()
        lengths = np.array([row.length for row in running], np.int32)
        self.perturbation.set_rows(np.array([row.member for row in running]))
        ids = [row.tokens[-1] for row in running]
        logits = self.attention.run(self.model, ids, lengths.tolist(), Decode(lengths))
        self._choose(running, logits, params)
        self.times.decode += time.perf_counter() - started
        self.times.generated_tokens += len(running)

    def _choose(self, rows: list[DecodeSequence], logits: Tensor, params: Sampling) -> None:
        points = None
        if params.temperature > 0.0:
            points = np.array([row.draws[len(row.tokens)] for row in rows if row.draws is not None])
        for row, token in zip(rows, sampling.choose(logits, params, points), strict=True):
            row.tokens.append(token)

    def _retire(self, running: list[DecodeSequence], stop: Stop) -> Iterator[DecodeSequence]:
        """Yield and remove finished rows; the last rows move into their slots, so that slots stay 0, 1, …"""
        finished = []
        for slot, row in enumerate(running):
            row.finish = stop.reached(row)
            if row.finish is not None:
                finished.append(slot)
        if not finished:
            return
        done = [running[slot] for slot in finished]
        left = len(running) - len(finished)
        holes = [slot for slot in finished if slot < left]
        movers = [slot for slot in range(left, len(running)) if running[slot].finish is None]
        used = max((running[slot].length for slot in movers), default=0)
        self.attention.cache.move(movers, holes, used)
        for source, target in zip(movers, holes, strict=True):
            running[target] = running[source]
        del running[left:]
        yield from done

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[ForcedSequence]) -> Iterator[list[float]]:
        """Yield log p(token | preceding tokens) at temperature 1 of each completion's tokens.

        A shared prefix of consecutive prompts of a member is computed once.
        """
        while sequences:
            first, tokens = sequences[: self.slots], self.prefill_tokens
            members = [sequence.member for sequence in first]
            whole = [[*sequence.prompt, *sequence.completion] for sequence in first]
            pack = packed(0, members, whole, tokens=tokens, padded=tokens)
            batch, sequences = sequences[: len(pack.paths)], sequences[len(pack.paths) :]
            spans = [path[len(sequence.prompt) - 1 : -1] for path, sequence in zip(pack.paths, batch, strict=True)]
            keep, rows = np.unique(np.concatenate(spans).astype(np.int64), return_inverse=True)
            targets = np.concatenate([np.asarray(sequence.completion, np.int64) for sequence in batch])
            found = iter(_chosen(self._prefill(pack, keep), rows, targets) if keep.size else ())
            for sequence in batch:
                yield [next(found) for _ in sequence.completion]


def _chosen(logits: Tensor, rows: np.ndarray, targets: np.ndarray) -> Iterator[float]:
    """Yield log softmax(logits[row])[target] for every row and target."""
    for first in range(0, rows.size, _ROWS):
        row, target = (torch.from_numpy(x[first : first + _ROWS]).to(logits.device) for x in (rows, targets))
        chances = logits[row].float().log_softmax(-1)
        yield from chances.gather(1, target[:, None])[:, 0].tolist()


def slots_for(rows: int, positions: int, *, max_rows: int, max_tokens: int) -> int:
    """Return the rows in flight: at most ``max_rows``, and ``max_tokens`` cached positions at ``positions`` each."""
    return max(1, min(rows, max_rows, max_tokens // positions))


def rows_of(job: Job, tokenizer: ModelTokenizer) -> list[DecodeSequence]:
    """Return one row per member, prompt and sample; a row without room for new tokens is finished."""
    params, ids = job.sampling, tokenizer.encode(job.prompts)
    limits = tokenizer.limits(job.prompts, ids, most=params.max_tokens)
    shared = {
        (p, s): sampling.draws(params, prompt, s) for p, prompt in enumerate(job.prompts) for s in range(params.samples)
    }
    return [
        DecodeSequence(member, p, s, ids[p], limits[p], shared[p, s], finish=None if limits[p] else "length")
        for member, p in job.pairs
        for s in range(params.samples)
    ]


def rollout_of(job: Job, row: DecodeSequence, stop: Stop) -> Rollout:
    """Return the rollout of a finished row."""
    assert row.finish is not None
    return Rollout(
        job=job.id,
        member=job.members[row.member],
        prompt=row.prompt,
        sample=row.sample,
        text=stop.text(row.tokens),
        token_ids=tuple(row.tokens),
        prompt_tokens=len(row.prompt_ids),
        finish=row.finish,
    )
