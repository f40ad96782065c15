"""A key-value cache of slots: one slot per row in flight, preallocated, never re-copied while decoding.

Keys are stored transposed, (slots, heads, dim, time), values (slots, heads, time, dim): the order the decode
kernel reads.  Row i of a decode step uses slot i; when rows finish, the last rows are moved into their slots.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from seedtune.engines.transformers.decoding.decode_round import DecodeRound, RecordedSteps
from seedtune.engines.transformers.device import has_kernels
from seedtune.engines.transformers.members.population_linear import bits
from seedtune.errors import ModelError

TIME_STEP = 16
"""Time is rounded up to this many positions, the width of the decode kernel's vectors."""


class SlotLayer(CacheLayerMixin):
    """One attention layer's slots.  ``update`` only returns the layer: attention reads and writes it.

    Attention also allocates it: latent attention passes smaller tensors to ``update`` than its heads read.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor
    arrays: tuple[np.ndarray, np.ndarray] | None
    """Keys and values as numpy arrays for the compiled kernel, if it supports them."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate keys (slots, heads, dim, time) and values (slots, heads, time, dim) for states like these."""
        slots, time = self.cache.slots, self.cache.time
        (heads, dim), (value_heads, value_dim) = (x.shape[1::2] for x in (key_states, value_states))
        self.keys = key_states.new_zeros(slots, heads, dim, time)
        self.values = value_states.new_zeros(slots, value_heads, time, value_dim)
        even = dim % TIME_STEP == 0 and value_dim % TIME_STEP == 0
        serves = has_kernels(self.keys.device, self.keys.dtype)
        self.arrays = (bits(self.keys), bits(self.values)) if self.cache.compiled and even and serves else None
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the states of this pass unchanged; attention then writes them into this layer."""
        self.cache.pending = self
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (length, offset) of the keys that a mask would cover: those of this pass."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Return 0, as `SlotCache.get_seq_length`."""
        return 0

    def get_max_length(self) -> int:
        """Return -1: the cache has no limit of its own."""
        return -1


class SlotCache(Cache):
    """``slots`` rows of ``time`` positions for every layer of the model.

    Without ``compiled`` torch reads and writes the cache, so that nothing is compiled for a single pass.
    """

    layers: list[SlotLayer]  # type: ignore[assignment]

    def __init__(self, slots: int, time: int, *, compiled: bool = True) -> None:
        super().__init__(layers=[])
        self.slots, self.compiled = slots, compiled
        self.time = -(-time // TIME_STEP) * TIME_STEP
        self.pending: SlotLayer | None = None
        self.recorded = RecordedSteps()
        self._rounds: dict[int, DecodeRound] = {}

    def round(self, rows: int, device: torch.device) -> DecodeRound:
        """Return the state of rounds of so many rows, always the same memory."""
        if rows not in self._rounds:
            self._rounds[rows] = DecodeRound(rows, device)
        return self._rounds[rows]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the states of this pass unchanged, and note the layer that attention writes them into."""
        while len(self.layers) <= layer_idx:
            self.layers.append(SlotLayer(self))
        keys, values = self.layers[layer_idx].update(key_states, value_states)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are given explicitly, the model must not derive them from the cache."""
        return 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        """Return False: positions are given explicitly."""
        return False

    def get_conv_state(self, *_: Any, **__: Any) -> Any:
        """Raise ModelError: a recurrent state along the tokens would mix the prompts of a packed batch."""
        raise ModelError(
            "the model has layers that remember earlier tokens without attention (convolution or recurrence), "
            "which this engine cannot batch yet. Use a model whose layers all attend."
        )

    get_recurrent_state = update_conv_state = update_recurrent_state = update_indexer = get_conv_state

    def move(self, sources: list[int], targets: list[int], used: int) -> None:
        """Copy the first ``used`` positions of slots ``sources`` into ``targets`` (disjoint)."""
        if not sources:
            return
        for layer in self.layers:
            if not layer.is_initialized:
                continue
            for source, target in zip(sources, targets, strict=True):
                layer.keys[target, :, :, :used] = layer.keys[source, :, :, :used]
                layer.values[target, :, :used] = layer.values[source, :, :used]


def large_enough(cache: SlotCache, slots: int, time: int) -> SlotCache:
    """Return ``cache`` if it is large enough, else a new one (the old one's memory is released first)."""
    if slots <= cache.slots and time <= cache.time:
        return cache
    cache.layers.clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return SlotCache(slots, time)
