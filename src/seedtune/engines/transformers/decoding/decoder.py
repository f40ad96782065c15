"""The decode loop: rows occupy slots, finished rows leave at once, waiting rows take their place."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.base import EngineTimes
from seedtune.engines.transformers.decoding import sampling
from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack, packed
from seedtune.engines.transformers.decoding.slot_attention import Decode, Prefill, SlotAttention
from seedtune.engines.transformers.decoding.slot_cache import SlotCache
from seedtune.engines.transformers.members.perturbation import Perturbation
from seedtune.engines.transformers.tokenization import ModelTokenizer
from seedtune.types import Finish, Job, Rollout, Sampling

_PADDED = 4
"""Padded tokens of prompts with shared prefixes may be this many times the computed ones (attention pads prompts)."""


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
    """Stop conditions of a row: token ids, or strings found in its decoded tail."""

    token_ids: frozenset[int]
    strings: tuple[str, ...]
    decode: Callable[[list[int]], str]

    def reached(self, row: DecodeSequence) -> Finish | None:
        """Return why ``row`` ends with its last token, or None if it continues."""
        if row.tokens[-1] in self.token_ids:
            return "stop"
        if self.strings and self._in_tail(row):
            return "stop"
        return "length" if len(row.tokens) >= row.limit else None

    def _in_tail(self, row: DecodeSequence) -> bool:
        """Return whether a stop string has just appeared; a character takes at most four tokens (one per byte)."""
        tail = self.decode(row.tokens[-4 * (max(map(len, self.strings)) + 1) :])
        return any(string in tail for string in self.strings)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits: at most ``slots`` rows in flight, and ``prefill_tokens`` prompt tokens in one forward pass."""

    slots: int
    prefill_tokens: int

    @property
    def refill(self) -> int:
        """Number of free slots that justifies a prefill pass while rows are decoding: an eighth of all."""
        return max(1, self.slots // 8)


class Decoder:
    """Runs the rows of one job through the model; the caller has set the members' factors."""

    def __init__(
        self,
        model: Any,
        *,
        attention: SlotAttention,
        perturbation: Perturbation,
        budget: Budget,
        times: EngineTimes,
    ) -> None:
        self.model, self.attention, self.perturbation = model, attention, perturbation
        self.budget, self.times = budget, times
        self.device: torch.device = model.device

    @torch.no_grad()
    def run(self, rows: Sequence[DecodeSequence], how: Sampling, stop: Stop) -> Iterator[DecodeSequence]:
        """Yield each row when it is finished, in the order of finishing."""
        waiting, running = deque(rows), list[DecodeSequence]()
        while waiting or running:
            free = self.budget.slots - len(running)
            if waiting and (not running or free >= min(len(waiting), self.budget.refill)):
                self._admit(waiting, running, how)
            else:
                self._step(running, how)
            yield from self._retire(running, stop)

    def _admit(self, waiting: deque[DecodeSequence], running: list[DecodeSequence], how: Sampling) -> None:
        """Prefill as many waiting rows as slots and the pass allow, and choose their first tokens."""
        started = time.perf_counter()
        free = self.budget.slots - len(running)
        prompts = [(row.member, row.prompt_ids) for row in islice(waiting, free)]
        tokens = self.budget.prefill_tokens
        pack, count = packed(len(running), prompts, tokens=tokens, padded=_PADDED * tokens)
        batch = [waiting.popleft() for _ in range(count)]
        self._choose(batch, self._prefill(pack, [row.member for row in batch]), how)
        running += batch
        self.times.prefill += time.perf_counter() - started
        self.times.prompt_tokens += sum(pack.lengths)
        self.times.generated_tokens += count

    def _prefill(self, pack: PrefixPack, members: list[int]) -> Tensor:
        self.perturbation.set_rows(np.array(pack.members), np.array(members))
        return self._forward(pack.ids, pack.positions, Prefill.of(pack, self.device), pack.last())

    def _step(self, running: list[DecodeSequence], how: Sampling) -> None:
        """Generate one token for every running row."""
        started = time.perf_counter()
        lengths = np.array([row.length for row in running], np.int32)
        self.perturbation.set_rows(np.array([row.member for row in running]))
        logits = self._forward([row.tokens[-1] for row in running], lengths.tolist(), Decode(lengths), None)
        self._choose(running, logits, how)
        self.times.decode += time.perf_counter() - started
        self.times.generated_tokens += len(running)

    def _forward(
        self, ids: list[int], positions: list[int], current: Prefill | Decode, keep: list[int] | None
    ) -> Tensor:
        """Return logits (kept tokens, vocabulary) of packed tokens."""
        self.attention.current = current
        output = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            past_key_values=self.attention.cache,
            use_cache=True,
            logits_to_keep=0 if keep is None else torch.tensor(keep, device=self.device),
        )
        logits: Tensor = output.logits[0]
        return logits

    def _choose(self, rows: list[DecodeSequence], logits: Tensor, how: Sampling) -> None:
        points = None
        if how.temperature > 0.0:
            points = np.array([row.draws[len(row.tokens)] for row in rows if row.draws is not None])
        for row, token in zip(rows, sampling.choose(logits, how, points), strict=True):
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


def slots_for(rows: int, positions: int, *, max_rows: int, max_tokens: int) -> int:
    """Return the rows in flight: at most ``max_rows``, and ``max_tokens`` cached positions at ``positions`` each."""
    return max(1, min(rows, max_rows, max_tokens // positions))


def rows_of(job: Job, tokenizer: ModelTokenizer) -> list[DecodeSequence]:
    """Return one row per member, prompt and sample; a row without room for new tokens is finished."""
    how, ids = job.sampling, tokenizer.encode(job.prompts)
    limits = tokenizer.limits(job.prompts, ids, most=how.max_tokens)
    shared = {
        (p, s): sampling.draws(how, prompt, s) for p, prompt in enumerate(job.prompts) for s in range(how.samples)
    }
    return [
        DecodeSequence(member, p, s, ids[p], limits[p], shared[p, s], finish=None if limits[p] else "length")
        for member, p in job.pairs
        for s in range(how.samples)
    ]


def rollout_of(job: Job, row: DecodeSequence, decode: Callable[[list[int]], str]) -> Rollout:
    """Return the rollout of a finished row; a stop string is not part of its text."""
    text = decode(row.tokens)
    for stop in job.sampling.stop:
        text = text.split(stop, 1)[0]
    assert row.finish is not None
    return Rollout(
        job=job.id,
        member=job.members[row.member],
        prompt=row.prompt,
        sample=row.sample,
        text=text,
        token_ids=tuple(row.tokens),
        prompt_tokens=len(row.prompt_ids),
        finish=row.finish,
    )


__all__ = ["Budget", "DecodeSequence", "Decoder", "SlotCache", "Stop", "rollout_of", "rows_of", "slots_for"]
