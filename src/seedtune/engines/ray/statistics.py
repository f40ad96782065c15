"""Statistics: seconds and tokens of the workers, bytes through the driver, losses, and every piece of work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from seedtune.engines.base import EngineTimes
from seedtune.engines.ray.protocol import Reply


@dataclass(frozen=True, slots=True)
class Span:
    """A finished piece of work; ``sent`` and ``received`` are the driver's clock, the rest are the worker's seconds.

    ``synced`` went into updates that the worker missed, ``worked`` into the work.  ``position`` counts the updates in
    the weights.
    """

    worker: str
    number: int
    cost: float
    kind: str
    sent: float
    received: float
    synced: float
    worked: float
    position: int


@dataclass(slots=True)
class Statistics:
    """Counts since the last generation; most are metrics of the same name."""

    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_prompts: int = 0
    """Bytes of prompts sent, with how to sample; each prompt counts once for every worker that reads it."""

    bytes_completions: int = 0
    """Bytes received in rollouts (or likelihoods), compressed."""

    members: int = 0
    """Members whose results arrived."""

    lost: int = 0
    retried: int = 0
    late: int = 0
    given_up: int = 0
    _times: list[float] = field(default_factory=lambda: [0.0] * 6)
    _worked: float = 0.0
    _overhead: float = 0.0
    _pieces: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add(self, span: Span, reply: Reply) -> None:
        """Record a finished piece of work."""
        if reply.times is not None:
            self._times = [sum(pair) for pair in zip(self._times, reply.times, strict=True)]
        self._worked += span.synced + span.worked
        self._overhead += max(0.0, span.received - span.sent - span.synced - span.worked)
        self._pieces += 1

    def times(self, workers: int) -> EngineTimes:
        """Return wall-clock seconds with ``workers`` in parallel, tokens of all of them, and the Ray figures."""
        spent = time.monotonic() - self._since
        rest = self.bytes_sent + self.bytes_received - self.bytes_completions - self.bytes_prompts
        counts = ("bytes_sent", "bytes_received", "bytes_prompts", "bytes_completions")
        figures = {
            "ray/workers": workers,
            "ray/utilisation": self._worked / max(1e-9, spent * max(1, workers)),
            "ray/overhead_ms": 1e3 * self._overhead / max(1, self._pieces),
            "ray/bytes_per_member": rest / max(1, self.members),
            **{f"ray/{name}": getattr(self, name) for name in (*counts, "lost", "retried", "late", "given_up")},
        }
        perturb, prefill, decode, update = (total / max(1, workers) for total in self._times[:4])
        generated, prompts = map(int, self._times[4:])
        return EngineTimes(perturb, prefill, decode, update, generated, prompts, figures)
