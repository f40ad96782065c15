"""Rows in flight and positions of the key-value cache: as the settings say, or as a device's free memory allows."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from seedtune.config.sections import TransformersSettings
from seedtune.engines.transformers.decoding.slot_cache import SlotCache
from seedtune.engines.transformers.device import free_memory

MOST_ROWS = 2048
"""A product of more rows is no faster a row."""

_CACHE, _LOGITS = 0.7, 0.05
"""Parts of the free memory; the rest is for members' noise and what a pass needs."""

_NUMBER = 8
"""Bytes for each logit of a row: as computed, and in float32 or sorted out by a mask."""


@dataclass(frozen=True, slots=True)
class CacheSize:
    """At most so many rows in flight, with so many positions together."""

    rows: int
    positions: int

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens that a prefill pass reads."""
        return max(1024, self.positions // 64)

    def slots(self, rows: int, longest: int) -> int:
        """Return how many of ``rows`` rows of ``longest`` positions each are in flight."""
        return max(1, min(rows, self.rows, self.positions // longest))

    def to_json(self) -> dict[str, int]:
        """Return the entry for the ledger."""
        return asdict(self)


CPU = CacheSize(256, 65_536)


def size_for(settings: TransformersSettings, free: CacheSize = CPU) -> CacheSize:
    """Return what the settings say; for a number that they leave open, what is ``free``."""
    rows, positions = settings.max_rows, settings.max_batch_tokens
    return CacheSize(free.rows if rows is None else rows, free.positions if positions is None else positions)


def free_on(device: torch.device, *, position: int, vocabulary: int) -> CacheSize:
    """Return the size that a device's free memory allows, for positions of so many bytes; a CPU's is always the same.

    Memory is rounded down to three binary digits, so that a few bytes more or less change nothing.
    """
    if device.type == "cpu":
        return CPU
    free = free_memory(device)
    free -= free % (1 << max(0, free.bit_length() - 3))
    rows = int(free * _LOGITS) // (_NUMBER * vocabulary)
    return CacheSize(max(16, min(MOST_ROWS, rows)), max(1024, int(free * _CACHE) // position))


def position_bytes(cache: SlotCache, dtype: torch.dtype) -> int:
    """Return the bytes of keys and values that one position of a row takes in all layers of a model that has run."""
    heads = sum(x.keys.shape[1] * x.keys.shape[2] + x.values.shape[1] * x.values.shape[3] for x in cache.layers)
    return max(1, heads * dtype.itemsize)
