"""Refuse models at load time that a packed batch would run wrongly, instead of running them silently."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface

from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.errors import ModelError


@contextmanager
def checked(model: Any, attention: SlotAttention) -> Iterator[None]:
    """Check the passes that run while it is open.

    Raises ModelError unless every layer's memory is an attention cache, and every window that the model requests for
    its masks reaches its attention layers.
    """
    asked, given = set[int](), set[int]()

    def mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
        if local_size:
            asked.add(local_size)

    def attend(*inputs: Any, **options: Any) -> Any:
        if options.get("sliding_window"):
            given.add(options["sliding_window"])
        return attention(*inputs, **options)

    AttentionInterface.register(attention.name, attend)
    AttentionMaskInterface.register(attention.name, mask)
    try:
        yield
    finally:
        # With a mask function registered, transformers would prepare unused masks in every pass.
        AttentionMaskInterface._global_mapping.pop(attention.name, None)
        AttentionInterface.register(attention.name, attention)
    name, layers = type(model).__name__, model.config.get_text_config().num_hidden_layers
    if asked - given:
        raise ModelError(
            f"{name} limits attention to {min(asked - given)} tokens by a mask alone (chunks, or a sliding window), "
            "which this engine cannot batch yet. Use a model with full attention."
        )
    if sum(bool(layer.is_initialized) for layer in attention.cache.layers) < layers:
        raise ModelError(
            f"{name} has layers that remember earlier tokens without attention, "
            "which this engine cannot batch yet. Use a model whose layers all attend."
        )
