"""A worker: one engine in a process of Ray's.  Bytes in, bytes out; it knows its updates, and no more."""

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
"""Updates that a worker can be asked about by number."""


class BehindError(Exception):
    """The weights do not have the updates that a request takes them to have."""


class Worker:
    """What Ray runs.  ``call`` takes a request and gives a reply; whatever goes wrong is told in it."""

    def __init__(self, spec: bytes) -> None:
        about = protocol.unpack(spec)
        _limit_threads(about["threads"], torch_too=about["config"]["engine"] != "toy")
        config = Config.create(about["config"])
        self.engine: Engine = engines.ENGINES[config.engine](config, words.noise_from(about["noise"]))
        self.epoch, self.position = -1, 0
        self.about: Plain = None
        self.memory = protocol.PromptCache()
        self.recent: dict[int, tuple[Term, ...]] = {}
        """The terms of the last updates, by how many came before."""

    def call(self, request: bytes) -> bytes:
        """A reply: ``done`` or an ``error``, how far the weights are now, and what it took."""
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
        except Exception as caught:  # noqa: BLE001 - the named boundary: whoever waits for a reply must get one
            error = [UNKNOWN, f"{type(caught).__name__}: {caught}"]
        times = protocol.times(self.engine.take_times(), moments[1] - moments[0], moments[2] - moments[1])
        return protocol.pack([done, error, self.epoch, self.position, times])

    def _sync(self, epoch: int, start: Plain, position: int, missing: Sequence[Plain]) -> None:
        """Bring the weights to where a request needs them."""
        if start is not None:
            self._load(*start)
            self.epoch, self.position = epoch, position
            self.recent.clear()
        if (self.epoch, self.position) != (epoch, position):
            raise BehindError
        updates = [compact_codec.update_from(update) for update in missing]
        for batch in passes(updates):
            self.epoch = -1  # should this fail half-way, nobody is to go on from there
            self.engine.apply(*batch)
            for update in batch:
                self.recent[self.position] = update.terms
                self.position += 1
            self.epoch = epoch
        for old in sorted(self.recent)[:-RECENT]:
            del self.recent[old]

    def _load(self, snapshot: str | None, expected: str | None) -> None:
        """The base model, or a snapshot, which must hold what it held when it was made."""
        folder = None if snapshot is None else Path(snapshot)
        self.epoch = -1
        self.about = protocol.info(self.engine.load(folder))
        if expected is not None and self.engine.fingerprint() != expected:
            raise StorageError(f"the snapshot {folder} does not hold what was written into it. Delete it.")

    # ---------------------------------------------------------------- operations

    def enrol(self, _: Plain) -> Plain:
        """Who and where this is, and what it has loaded."""
        return [os.getpid(), socket.gethostname(), self.about]

    def evaluate(self, asked: Plain) -> Plain:
        """A job's rollouts."""
        job = protocol.job_from(asked, self.memory)
        return protocol.rollouts(job, self.engine.evaluate([job]))

    def likelihoods(self, asked: Plain) -> Plain:
        """A job's likelihoods."""
        return protocol.likelihoods(self.engine.likelihoods([protocol.job_from(asked, self.memory)]))

    def norm(self, asked: Plain) -> Plain:
        """‖Σ weight·ε‖."""
        return self.engine.norm(compact_codec.terms_from(asked))

    def drift(self, _: Plain) -> Plain:
        """‖θ − θ₀‖."""
        return self.engine.drift()

    def cosine(self, asked: Plain) -> Plain:
        """The cosine between two updates."""
        one, other = (
            self.recent[terms] if isinstance(terms, int) else compact_codec.terms_from(terms) for terms in asked
        )
        return self.engine.cosine(one, other)

    def logprobs(self, asked: Plain) -> Plain:
        """Log-probabilities of completions."""
        prompts, completions, base = asked
        return self.engine.logprobs(protocol.prompts_from(prompts), completions, base=base)

    def fingerprint(self, _: Plain) -> Plain:
        """The fingerprint of the current weights."""
        return bytes.fromhex(self.engine.fingerprint())

    def snapshot(self, path: Plain) -> Plain:
        """Write the current weights where this worker is."""
        self.engine.snapshot(Path(path))

    def export(self, asked: Plain) -> Plain:
        """Write a model where this worker is."""
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
"""Everything a worker can be asked."""


def _limit_threads(count: int, *, torch_too: bool) -> None:
    """Workers side by side must not fight for cores."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import numba

    numba.set_num_threads(max(1, min(count, numba.config.NUMBA_NUM_THREADS)))
    if torch_too:
        import torch

        torch.set_num_threads(max(1, count))
