"""Refuse models at load time that a packed batch would run wrongly, instead of running them silently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface

from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.errors import ModelError


@dataclass(slots=True)
class Windows:
    """Window sizes that a model requested for its masks, and those it passed to its attention layers."""

    asked: set[int] = field(default_factory=set)
    given: set[int] = field(default_factory=set)


@contextmanager
def observed(attention: SlotAttention) -> Iterator[Windows]:
    """While open, record the windows of every mask and of every call of ``attention``."""
    seen = Windows()

    def mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
        if local_size:
            seen.asked.add(local_size)

    def attend(*inputs: Any, **options: Any) -> Any:
        if options.get("sliding_window"):
            seen.given.add(options["sliding_window"])
        return attention(*inputs, **options)

    AttentionInterface.register(attention.name, attend)
    AttentionMaskInterface.register(attention.name, mask)
    try:
        yield seen
    finally:
        # With a mask function registered, transformers would prepare unused masks in every pass.
        AttentionMaskInterface._global_mapping.pop(attention.name, None)
        AttentionInterface.register(attention.name, attention)


def check(model: Any, attention: SlotAttention, seen: Windows) -> None:
    """Raise ModelError unless every layer's memory is an attention cache and every window reaches its attention."""
    name, layers = type(model).__name__, model.config.get_text_config().num_hidden_layers
    if seen.asked - seen.given:
        size = min(seen.asked - seen.given)
        raise ModelError(
            f"{name} limits attention to {size} tokens by a mask alone (chunks, or a sliding window), "
            "which this engine cannot batch yet. Use a model with full attention."
        )
    if sum(bool(layer.is_initialized) for layer in attention.cache.layers) < layers:
        raise ModelError(
            f"{name} has layers that remember earlier tokens without attention, "
            "which this engine cannot batch yet. Use a model whose layers all attend."
        )
