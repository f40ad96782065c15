"""A worker: one engine in a Ray process.  Bytes in, bytes out; its only state is its updates."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from seedtune import engines
from seedtune.config.config import Config
from seedtune.engines import codec as words
from seedtune.engines import compact_codec
from seedtune.engines.base import Engine, passes
from seedtune.engines.codec import Plain
from seedtune.engines.ray import protocol
from seedtune.engines.ray.protocol import BEHIND, UNKNOWN
from seedtune.errors import SeedtuneError, StorageError
from seedtune.types import Term

RECENT = 16
"""Updates that a request can refer to by number."""


class BehindError(Exception):
    """The weights lack the updates that a request assumes."""


class Worker:
    """The class of the Ray actor.  ``call`` takes a request and returns a reply, which reports any error."""

    def __init__(self, spec: bytes) -> None:
        about = protocol.unpack(spec)
        _limit_threads(about["threads"], torch_too=about["config"]["engine"] != "toy")
        config = Config.create(about["config"])
        self.engine: Engine = engines.ENGINES[config.engine](config, words.noise_from(about["noise"]))
        self.epoch, self.position = -1, 0
        self.about: Plain = None
        self.memory = protocol.PromptCache()
        self.recent: dict[int, tuple[Term, ...]] = {}
        """The terms of the last updates, by the number of updates before each."""

    def call(self, request: bytes) -> bytes:
        """Return a reply: ``done`` or an ``error``, the position of the weights, and the times."""
        done, error, moments = None, None, [time.perf_counter()] * 3
        try:
            operation, told, sync = protocol.unpack(request)
            self._sync(*sync)
            moments[1:] = [time.perf_counter()] * 2
            done = OPERATIONS[operation](self, told)
            moments[2] = time.perf_counter()
        except SeedtuneError as caught:
            error = [type(caught).__name__, str(caught)]
        except BehindError:
            error = [BEHIND, ""]
        except Exception as caught:  # noqa: BLE001 - the named boundary: the caller must get a reply
            error = [UNKNOWN, f"{type(caught).__name__}: {caught}"]
        times = protocol.times(self.engine.take_times(), moments[1] - moments[0], moments[2] - moments[1])
        return protocol.pack([done, error, self.epoch, self.position, times])

    def _sync(self, epoch: int, start: Plain, position: int, missing: Sequence[Plain]) -> None:
        """Bring the weights to the position that a request needs."""
        if start is not None:
            self._load(*start)
            self.epoch, self.position = epoch, position
            self.recent.clear()
        if (self.epoch, self.position) != (epoch, position):
            raise BehindError
        updates = [compact_codec.update_from(update) for update in missing]
        for batch in passes(updates):
            self.epoch = -1  # if this fails half-way, no request may continue from these weights
            self.engine.apply(*batch)
            for update in batch:
                self.recent[self.position] = update.terms
                self.position += 1
            self.epoch = epoch
        for old in sorted(self.recent)[:-RECENT]:
            del self.recent[old]

    def _load(self, snapshot: str | None, expected: str | None) -> None:
        """Load the base model, or a snapshot, and check that the snapshot has the expected fingerprint."""
        folder = None if snapshot is None else Path(snapshot)
        self.epoch = -1
        self.about = protocol.info(self.engine.load(folder))
        if expected is not None and self.engine.fingerprint() != expected:
            raise StorageError(f"the snapshot {folder} does not hold what was written into it. Delete it.")

    # ---------------------------------------------------------------- operations

    def enrol(self, _: Plain) -> Plain:
        """Return the worker's identity and host, and the description of its engine."""
        return [os.getpid(), socket.gethostname(), self.about]

    def evaluate(self, asked: Plain) -> Plain:
        """Return a job's rollouts."""
        job = protocol.job_from(asked, self.memory)
        return protocol.rollouts(job, self.engine.evaluate([job]))

    def likelihoods(self, asked: Plain) -> Plain:
        """Return a job's likelihoods."""
        return protocol.likelihoods(self.engine.likelihoods([protocol.job_from(asked, self.memory)]))

    def norm(self, asked: Plain) -> Plain:
        """Return ‖Σ weight·ε‖."""
        return self.engine.norm(compact_codec.terms_from(asked))

    def drift(self, _: Plain) -> Plain:
        """Return ‖θ − θ₀‖."""
        return self.engine.drift()

    def cosine(self, asked: Plain) -> Plain:
        """Return the cosine between two updates."""
        one, other = (
            self.recent[terms] if isinstance(terms, int) else compact_codec.terms_from(terms) for terms in asked
        )
        return self.engine.cosine(one, other)

    def logprobs(self, asked: Plain) -> Plain:
        """Return log-probabilities of completions."""
        prompts, completions, base = asked
        return self.engine.logprobs(protocol.prompts_from(prompts), completions, base=base)

    def fingerprint(self, _: Plain) -> Plain:
        """Return the fingerprint of the current weights."""
        return bytes.fromhex(self.engine.fingerprint())

    def snapshot(self, path: Plain) -> Plain:
        """Write the current weights on this worker's machine."""
        self.engine.snapshot(Path(path))

    def export(self, asked: Plain) -> Plain:
        """Write a model on this worker's machine."""
        self.engine.export(Path(asked[0]), asked[1])


OPERATIONS: dict[str, Callable[[Worker, Plain], Plain]] = {
    "enrol": Worker.enrol,
    "evaluate": Worker.evaluate,
    "likelihoods": Worker.likelihoods,
    "norm": Worker.norm,
    "drift": Worker.drift,
    "cosine": Worker.cosine,
    "logprobs": Worker.logprobs,
    "fingerprint": Worker.fingerprint,
    "snapshot": Worker.snapshot,
    "export": Worker.export,
}
"""The operations of a worker, by name."""


def _limit_threads(count: int, *, torch_too: bool) -> None:
    """Limit threads so that parallel workers do not compete for cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import numba

    numba.set_num_threads(max(1, min(count, numba.config.NUMBA_NUM_THREADS)))
    if torch_too:
        import torch

        torch.set_num_threads(max(1, count))
