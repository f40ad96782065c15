"""Statistics: seconds and tokens of the workers, bytes through the driver, losses, and every piece of work."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, fields

from seedtune.engines.base import EngineTimes
from seedtune.engines.ray.protocol import Reply, Traffic

SPANS = 100_000
"""Maximum pieces of work kept."""


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
    """Counts since the last `take`."""

    traffic: Traffic = field(default_factory=Traffic)
    spans: deque[Span] = field(default_factory=lambda: deque(maxlen=SPANS))
    lost: int = 0
    retried: int = 0
    late: int = 0
    given_up: int = 0
    _times: EngineTimes = field(default_factory=EngineTimes)
    _worked: float = 0.0
    _overhead: float = 0.0
    _pieces: int = 0
    _since: float = field(default_factory=time.monotonic)

    def add(self, span: Span, reply: Reply) -> None:
        """Record a finished piece of work."""
        self.spans.append(span)
        for name in ("perturb", "prefill", "decode", "update", "generated_tokens", "prompt_tokens"):
            setattr(self._times, name, getattr(self._times, name) + getattr(reply.times, name))
        self._worked += span.synced + span.worked
        self._overhead += max(0.0, span.received - span.sent - span.synced - span.worked)
        self._pieces += 1

    def take(self, workers: int) -> EngineTimes:
        """Return wall-clock seconds with ``workers`` in parallel, tokens of all of them, and the Ray figures."""
        taken, traffic, spent = self._times, self.traffic, time.monotonic() - self._since
        for name in ("perturb", "prefill", "decode", "update"):
            setattr(taken, name, getattr(taken, name) / max(1, workers))
        rest = traffic.sent + traffic.received - traffic.completions - traffic.prompts
        taken.figures = {
            "ray/workers": workers,
            "ray/utilisation": self._worked / max(1e-9, spent * max(1, workers)),
            "ray/overhead_ms": 1e3 * self._overhead / max(1, self._pieces),
            "ray/bytes_sent": traffic.sent,
            "ray/bytes_received": traffic.received,
            "ray/bytes_prompts": traffic.prompts,
            "ray/bytes_completions": traffic.completions,
            "ray/bytes_per_member": rest / max(1, traffic.members),
            **{f"ray/{name}": getattr(self, name) for name in ("lost", "retried", "late", "given_up")},
        }
        fresh = Statistics(spans=self.spans)
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))
        return taken
