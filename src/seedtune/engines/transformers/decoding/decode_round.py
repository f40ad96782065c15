"""Steps of all rows in flight between two looks of the host, as a device does them best: same shapes, nothing read.

Rows fill a bucket of a few sizes, and a round has up to `STEPS` steps, which may be recorded as CUDA graphs.  A row
that ends within a round goes on until the round does, and what it wrote after its end is dropped: since a row's tokens
depend on nothing that follows, its completion is that of a look at every step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.transformers.device import uploaded

STEPS = 8
"""Steps of a round; a row wastes fewer than that."""

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)

_TIME = 128
"""Positions that attention reads are rounded up to this many, so that few steps differ in shape."""


def bucket(rows: int, most: int) -> int:
    """Return the rows that a step of ``rows`` rows computes, at most ``most``."""
    return min(next((size for size in BUCKETS if size >= rows), most), most)


def read_positions(needed: int, most: int) -> int:
    """Return how many positions of the cache attention reads in a round that needs so many, at most ``most``."""
    return min(-(-needed // _TIME) * _TIME, most)


class DecodeRound:
    """The state of ``rows`` rows on the device: what each reads next, and what each has written in this round.

    One for each bucket of a cache: recorded steps read and write the same memory every time.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.tokens, self.places = torch.zeros(2, rows, dtype=torch.int64, device=device)
        self.written = torch.zeros(STEPS, rows, dtype=torch.int64, device=device)
        self.points = torch.zeros(STEPS, rows, device=device)
        self.done = torch.zeros(1, dtype=torch.int64, device=device)
        self.recordable = device.type == "cuda"

    def start(self, tokens: Sequence[int], places: Sequence[int], draws: Sequence[np.ndarray | None]) -> None:
        """Begin a round: each row's last token and its position, and its next draws; by one copy to the device."""
        host = np.zeros((2 + STEPS, self.rows), np.int32)
        host[0, : len(tokens)], host[1, : len(places)] = tokens, places
        points = host[2:].view(np.float32)
        for row, own in enumerate(draws):
            if own is not None:
                points[: own.size, row] = own[:STEPS]
        ids, at, *rest = uploaded(self.device, *host[:2], *points)
        self.tokens.copy_(ids)
        self.places.copy_(at)
        if any(own is not None for own in draws):
            self.points.copy_(torch.stack(rest))
        self.done.zero_()

    def point(self) -> Tensor:
        """Return the draws (rows,) of the step in flight."""
        return self.points.index_select(0, self.done)[0]

    def append(self, chosen: Tensor, last: int) -> None:
        """Write the step's tokens, and move every row to its next position, ``last`` at the most."""
        self.written.index_copy_(0, self.done, chosen[None])
        self.tokens.copy_(chosen)
        self.places.add_(1).clamp_(max=last)
        self.done.add_(1)


@dataclass
class RecordedSteps:
    """Steps on a CUDA device, which are recorded as graphs by their shape.

    A step is run as it is when its shape is first seen, and recorded when it comes again.  This has not run on a GPU
    yet; where recording fails, steps go on as they are, with one warning.
    """

    _graphs: dict[Hashable, Any] = field(default_factory=dict)
    _weights: int = 0
    _failed: bool = False

    def run(self, step: Callable[[], None], *, shape: Hashable, weights: int) -> None:
        """Run a step; ``weights`` numbers the memory of weights and members, and graphs of any other are freed."""
        if weights != self._weights:
            self._graphs.clear()
            self._weights = weights
        if shape not in self._graphs or self._failed:
            self._graphs[shape] = None
            step()
            return
        graph = self._graphs[shape] or self._recorded(step)
        self._graphs[shape] = graph
        if graph is None:
            step()
        else:
            graph.replay()

    def _recorded(self, step: Callable[[], None]) -> Any:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                step()
        except RuntimeError as error:
            self._failed = True
            warnings.warn(f"Decode steps are not recorded as CUDA graphs, which is slower: {error}", stacklevel=2)
            return None
        return graph
