"""A worker: one engine in a Ray process.  Bytes in, bytes out; its only state is its updates."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from msgspec import Raw

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines.base import Engine, EngineInfo, EngineTimes, passes
from seedtune.engines.codec import TermColumns, decode, encode
from seedtune.engines.ray.protocol import (
    BehindError,
    Call,
    Enrolment,
    JobMessage,
    Reply,
    StartWeights,
    Sync,
    pack,
)
from seedtune.engines.ray.worker_spec import WorkerSpec
from seedtune.errors import StorageError
from seedtune.types import Term, tokens

RECENT = 16
"""Updates that a request can refer to by number."""


class Worker:
    """The class of the Ray actor: `call` takes a `Call` and returns a `Reply`, which reports any error.

    Its operations are the other methods here, and those of its engine that it does not replace.
    """

    def __init__(self, spec: bytes) -> None:
        about = decode(spec, WorkerSpec)
        config = Config.create(dict(about.config))
        _limit_threads(about.threads, torch_too=config.engine != "toy")
        self.engine: Engine = engines.ENGINES[config.engine](config, about.noise)
        self.epoch, self.position = -1, 0
        self._info: EngineInfo | None = None
        self._texts: list[bytes] = []
        self._recent: dict[int, tuple[Term, ...]] = {}
        """The terms of the last updates, by the number of updates before each."""

    def call(self, request: bytes) -> bytes:
        """Return a `Reply` to a `Call`."""
        began = synced = time.perf_counter()
        result, error_class, message = Raw(encode(None)), "", ""
        try:
            call = decode(request, Call)
            self._sync(call.sync)
            synced = time.perf_counter()
            types = types_of(call.operation)
            arguments = {name: decode(raw, types[name]) for name, raw in call.arguments.items()}
            operate = getattr(self, call.operation, None) or getattr(self.engine, call.operation)
            result = Raw(encode(operate(**arguments)))
        except Exception as error:  # noqa: BLE001 - the named boundary: the caller must get a reply
            error_class, message = type(error).__name__, str(error)
        worked, taken = time.perf_counter() - synced, self.engine.take_times()
        times = None if taken == EngineTimes() else astuple(taken)[:6]
        reply = Reply(result, error_class, message, self.epoch, self.position, synced - began, worked, times)
        return encode(reply)

    def _sync(self, sync: Sync) -> None:
        """Bring the weights to the position that a request needs."""
        if sync.start is not None:
            self._load(sync.start)
            self.epoch, self.position = sync.epoch, sync.position
            self._recent.clear()
        if (self.epoch, self.position) != (sync.epoch, sync.position):
            raise BehindError
        for batch in passes([compact.update() for compact in sync.updates]):
            self.epoch = -1  # if this fails half-way, no request may continue from these weights
            self.engine.apply(*batch)
            for update in batch:
                self._recent[self.position] = update.terms
                self.position += 1
            self.epoch = sync.epoch
        for old in sorted(self._recent)[:-RECENT]:
            del self._recent[old]

    def _load(self, start: StartWeights) -> None:
        """Load the base model, or a snapshot, and check that the snapshot has the expected fingerprint."""
        self.epoch = -1
        self._info = self.engine.load(None if start.snapshot is None else Path(start.snapshot))
        if start.fingerprint is not None and self.engine.fingerprint() != start.fingerprint:
            raise StorageError(f"the snapshot {start.snapshot} does not hold what was written into it. Delete it.")

    # ---------------------------------------------------------------- operations

    def enrol(self) -> Enrolment:
        """Return what the controller needs to know of this worker."""
        assert self._info is not None
        return Enrolment(os.getpid(), socket.gethostname(), self._info)

    def evaluate(self, job: JobMessage) -> bytes:
        """Return the packed rollouts of a job, with counts for token ids that it does not request."""
        found = self.engine.evaluate([job.job(self._texts)])
        if job.tokens:
            return pack(found)
        return pack(replace(rollout, token_ids=(), counted=tokens(rollout)) for rollout in found)

    def likelihoods(self, job: JobMessage) -> bytes:
        """Return the packed likelihoods of a job."""
        return pack(self.engine.likelihoods([job.job(self._texts)]))

    def norm(self, terms: TermColumns) -> float:
        """See `Engine.norm`."""
        return self.engine.norm(terms.terms())

    def cosine(self, one: int | TermColumns, other: int | TermColumns) -> float:
        """Return the cosine between two updates, each as terms or by its number."""
        both = [self._recent[terms] if isinstance(terms, int) else terms.terms() for terms in (one, other)]
        return self.engine.cosine(*both)


@cache
def types_of(operation: str) -> dict[str, Any]:
    """Return the types of an operation's arguments by name, and of its result as "return"."""
    return get_type_hints(getattr(Worker, operation, None) or getattr(Engine, operation))


def _limit_threads(count: int, *, torch_too: bool) -> None:
    """Limit threads so that parallel workers do not compete for cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import numba

    numba.set_num_threads(max(1, min(count, numba.config.NUMBA_NUM_THREADS)))
    if torch_too:
        import torch

        torch.set_num_threads(max(1, count))
