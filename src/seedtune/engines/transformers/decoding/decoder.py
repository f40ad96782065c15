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
from seedtune.engines.transformers.decoding.decode_round import STEPS, bucket, read_positions
from seedtune.engines.transformers.decoding.likelihood import ForcedSequence
from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack, packed
from seedtune.engines.transformers.decoding.slot_attention import Decode, SlotAttention
from seedtune.engines.transformers.device import has_kernels
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

    At most ``slots`` rows of ``longest`` tokens are in flight, and ``prefill_tokens`` prompt tokens in one forward
    pass.  With compiled kernels the host looks at every step, else at every round of steps (`decode_round`).  Passes
    are timed by the clock alone: each ends with its tokens on the host, so the device has done its work by then.
    """

    model: Any
    attention: SlotAttention
    perturbation: Gaussian | LinearMembers
    slots: int
    longest: int
    prefill_tokens: int
    times: EngineTimes

    @torch.no_grad()
    def run(self, rows: Sequence[DecodeSequence], params: Sampling, stop: Stop) -> Iterator[DecodeSequence]:
        """Yield each row when it is finished, in the order of finishing."""
        waiting, running = deque(rows), list[DecodeSequence]()
        while waiting or running:
            free = self.slots - len(running)
            if waiting and (not running or free >= min(len(waiting), max(1, self.slots // _REFILL))):
                self._admit(waiting, running, params, stop)
            else:
                self._round(running, params, stop)
            yield from self._retire(running)

    def _admit(
        self, waiting: deque[DecodeSequence], running: list[DecodeSequence], params: Sampling, stop: Stop
    ) -> None:
        """Prefill as many waiting rows as slots and the pass allow, and choose their first tokens."""
        started = time.perf_counter()
        first, tokens = list(islice(waiting, self.slots - len(running))), self.prefill_tokens
        members, prompts = [row.member for row in first], [row.prompt_ids for row in first]
        pack = packed(len(running), members, prompts, tokens=tokens, padded=_PADDED * tokens)
        batch = [waiting.popleft() for _ in pack.paths]
        logits = self._prefill(pack, np.array(pack.last()))
        points = None
        if params.temperature > 0.0:
            points = torch.tensor([row.draws[0] for row in batch if row.draws is not None], dtype=torch.float32)
            points = points.to(logits.device)
        chosen = self._choose(batch, logits, params, points).tolist()
        running += batch
        self.times.prefill += time.perf_counter() - started
        self.times.prompt_tokens += sum(pack.lengths)
        self._append(batch, [[token] for token in chosen], stop)

    def _prefill(self, pack: PrefixPack, keep: np.ndarray) -> Tensor:
        """Return logits of the tokens ``keep`` of a pack."""
        members = np.array(pack.members)
        self.perturbation.set_rows(members, members[keep])
        return self.attention.prefill(self.model, pack, keep)

    def _round(self, running: list[DecodeSequence], params: Sampling, stop: Stop) -> None:
        """Generate the next tokens of every running row."""
        started = time.perf_counter()
        looks = has_kernels(self.model.device, self.model.dtype)
        steps = 1 if looks else min(STEPS, max(row.limit - len(row.tokens) for row in running))
        count = len(running) if looks else bucket(len(running), self.slots)
        members = np.full(count, running[0].member)
        members[: len(running)] = [row.member for row in running]
        self.perturbation.set_rows(members, steady=not looks)
        cache = self.attention.cache
        state, places = cache.round(count, self.model.device), [row.length for row in running]
        draws = [None if row.draws is None else row.draws[len(row.tokens) :] for row in running]
        state.start([row.tokens[-1] for row in running], places, draws)
        used, last = read_positions(max(places) + steps, cache.time), self.longest - 1

        def step() -> None:
            self.perturbation.begin_step()
            logits = self.attention.run(self.model, state.tokens, state.places, Decode(state.places, used), None)
            state.append(self._choose(running, logits, params, state.point()), last)

        shape = count, used, last, params.temperature, params.top_p
        for _ in range(steps):
            if self.perturbation.recordable and state.recordable:
                cache.recorded.run(step, shape=shape, weights=self.perturbation.version)
            else:
                step()
        written = state.written[:steps].T.tolist()
        self.times.decode += time.perf_counter() - started
        self._append(running, written, stop)

    def _choose(
        self, rows: Sequence[DecodeSequence], logits: Tensor, params: Sampling, points: Tensor | None
    ) -> Tensor:
        """Return the tokens chosen for ``rows``, and for what fills up their bucket."""
        return sampling.choose(logits, params, points)

    def _append(self, rows: Sequence[DecodeSequence], written: Sequence[Sequence[int]], stop: Stop) -> None:
        """Append to every row what it wrote up to its end."""
        for row, tokens in zip(rows, written, strict=False):
            for token in tokens:
                row.tokens.append(token)
                self.times.generated_tokens += 1
                row.finish = stop.reached(row)
                if row.finish is not None:
                    break

    def _retire(self, running: list[DecodeSequence]) -> Iterator[DecodeSequence]:
        """Yield and remove finished rows; the last rows move into their slots, so that slots stay 0, 1, …"""
        finished = [slot for slot, row in enumerate(running) if row.finish is not None]
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
