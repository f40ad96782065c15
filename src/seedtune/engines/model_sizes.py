"""The sizes of a model from its configuration alone: built on torch's meta device, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from seedtune.config.config import Config
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.device import dtype_name
from seedtune.engines.transformers.tracing import EXPERT, is_linear, shared_weights
from seedtune.errors import ConfigError, ModelError, first_line
from seedtune.numerics.trainable import select


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Counts of numbers: parameters (tied ones once), parameters that each perturbation reaches, factors, cache."""

    parameters: int
    linear: int
    """Weights that ``lowrank`` and ``flipout`` perturb, as far as can be determined without running the model."""
    trainable: int
    """Parameters that ``gaussian`` perturbs."""
    factors: int
    """Σ (m + n) over these weights: the factors of a pair at rank 1, or its signs."""
    layers: int
    cached: int
    """Key and value numbers of one position of one row, in all layers."""
    vocabulary: int
    itemsize: int
    """Bytes per number in the forward pass."""
    dtype: str


def anatomy_of(config: Config) -> Anatomy:
    """Return the sizes of the model that ``config`` names; ModelError if its configuration cannot be read."""
    source = ModelSource.of(config)
    described = source.config()
    model = _skeleton(described, source)
    parameters = dict(model.named_parameters())
    trainable = select(parameters, config.trainable)
    linear = [parameters[name] for name in linear_weights(model, set(trainable))]
    dtype = _dtype(config.dtype, described)
    text = described.get_text_config()
    return Anatomy(
        parameters=sum(p.numel() for p in parameters.values()),
        linear=sum(p.numel() for p in linear),
        trainable=sum(parameters[name].numel() for name in trainable),
        factors=sum(p.shape[0] + p.shape[1] for p in linear),
        layers=int(text.num_hidden_layers),
        cached=int(text.num_hidden_layers) * _cached(text),
        vocabulary=int(text.vocab_size),
        itemsize=dtype.itemsize,
        dtype=dtype_name(dtype),
    )


def _skeleton(described: Any, source: ModelSource) -> Any:
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(described, trust_remote_code=source.trust_remote_code)
    except (ValueError, KeyError, TypeError) as error:
        why = first_line(error)
        raise ModelError(f"cannot build the model {source.name!r} from its configuration: {why}") from error


def linear_weights(model: Any, trainable: set[str]) -> list[str]:
    """Return the trainable weights of linear layers, without experts and tied weights."""
    modules = dict(model.named_modules())
    shared = shared_weights(modules.values())
    return [
        f"{name}.weight"
        for name, module in modules.items()
        if is_linear(module)
        and f"{name}.weight" in trainable
        and not EXPERT.search(name)
        and id(module.weight) not in shared
    ]


def _cached(text: Any) -> int:
    """Count the numbers that one layer caches per position; this engine caches latent attention expanded."""
    heads = int(text.num_attention_heads)
    latent = getattr(text, "kv_lora_rank", None)
    if latent is not None:
        return heads * (int(text.qk_nope_head_dim) + int(text.qk_rope_head_dim) + int(text.v_head_dim))
    width = getattr(text, "head_dim", None) or int(text.hidden_size) // heads
    return 2 * int(getattr(text, "num_key_value_heads", None) or heads) * int(width)


def _dtype(wanted: str, described: Any) -> torch.dtype:
    """Return the forward pass's precision: from the setting, or else from the checkpoint's configuration."""
    own: Any = (getattr(described, "dtype", None) or torch.float32) if wanted == "auto" else wanted
    chosen = getattr(torch, own, None) if isinstance(own, str) else own
    if not isinstance(chosen, torch.dtype):
        raise ConfigError(f"the model's configuration has dtype={own!r}, which torch does not know. Set one.")
    return chosen
