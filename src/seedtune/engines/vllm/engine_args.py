"""vLLM's engine arguments: the user's, validated; defaults for the rest; and those that the engine itself decides."""

from __future__ import annotations

from typing import Any

import torch

from seedtune.config.sections import VllmSettings
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.vllm import compat
from seedtune.engines.vllm.base_model import BaseModelInfo
from seedtune.errors import ConfigError, suggest
from seedtune.numerics.noise import Noise

_REASONS = {
    "it is a top-level setting": "model dtype products trust_remote_code",
    "seedtune reads prompts itself, with the model's own tokenizer": "tokenizer skip_tokenizer_init",
    "draws follow the run's seed": "seed",
    "perturbation=lowrank needs adapters, and gaussian has none": "enable_lora",
    "adapters follow max_loras, rank and trainable, and are made whole": (
        "max_cpu_loras max_lora_rank lora_target_modules fully_sharded_loras"
    ),
    "seedtune extends vLLM's own workers": "worker_cls worker_extension_cls",
    "seedtune's own gives all members the same draws": "logits_processors",
    "log-probabilities are the model's own": "logprobs_mode",
    "members are written as plain weights": "quantization",
    "the weights are those of the model's files": "load_format",
    "a draft model would not follow the members": "speculative_config",
    "seedtune divides tensors, neither layers nor contexts: use tensor_parallel_size": (
        "pipeline_parallel_size prefill_context_parallel_size decode_context_parallel_size"
    ),
    "seedtune perturbs no experts": "enable_expert_parallel",
    "run several engines instead: engine=ray": (
        "data_parallel_size data_parallel_size_local data_parallel_rank data_parallel_start_rank nnodes"
    ),
    "the model is what its folder says, and the ledger names it by that": (
        "hf_overrides hf_config_path model_class_overrides revision code_revision"
    ),
    "the weights must stay where they are": (
        "cpu_offload_gb cpu_offload_params offload_backend offload_group_size offload_params enable_sleep_mode"
    ),
    "keys and values of other weights would come back from there": (
        "kv_offloading_size kv_offloading_backend kv_transfer_config ec_transfer_config"
    ),
    "steps follow each other, so that an interruption leaves nothing behind": "async_scheduling",
    "seedtune keeps its own": "disable_log_stats",
    "sampling follows the run's own settings": "generation_config override_generation_config",
}
OURS = {name: reason for reason, names in _REASONS.items() for name in names.split()}
"""Options that a user cannot give, and why."""

CPU_CACHE = 1 << 30
"""Bytes of the key-value cache on a CPU, where vLLM would take most of the memory by default."""

MEMORY = frozenset({"kv_cache_memory_bytes", "gpu_memory_utilization"})
"""Options any one of which limits vLLM's memory."""

SHARE = 0.9
"""Share of a GPU's memory for vLLM and the current weights together."""


def check(settings: VllmSettings) -> None:
    """Raise ConfigError for an option that vLLM does not have, or that a user may not set."""
    known = compat.option_names()
    for name, value in (settings.model_extra or {}).items():
        if name in OURS:
            raise ConfigError(f"vllm.{name}={value!r} cannot be given: {OURS[name]}. Leave it out.")
        if name not in known:
            raise ConfigError(f"unknown setting 'vllm.{name}': vLLM has no such option.{suggest(name, known)}")
    if settings.option("enforce_eager") is False and compat.on_cpu():
        raise ConfigError(
            "vllm.enforce_eager=False: on a CPU a compiled model may go on reading weights as they were packed when it "
            "was compiled. Leave it out."
        )


def check_length(settings: VllmSettings, angles_limit: int | None) -> None:
    """Raise ConfigError for a ``max_model_len`` beyond which vLLM would turn all tokens by other angles (longrope)."""
    given = settings.option("max_model_len")
    if angles_limit is not None and given is not None and given > angles_limit:
        raise ConfigError(
            f"vllm.max_model_len={given}: with more than the {angles_limit} tokens that the model was first trained "
            f"for, all its rotary angles are others (longrope). Use {angles_limit} or less."
        )


def check_divides(model: Any, ranks: int) -> None:
    """Raise ConfigError if ranks cannot split a model's heads and layers; vLLM would not name which."""
    for name in ("num_attention_heads", "intermediate_size", "num_key_value_heads"):
        size = getattr(model, name, None)
        replicated = name == "num_key_value_heads" and isinstance(size, int) and ranks % size == 0
        if isinstance(size, int) and size % ranks and not replicated:
            raise ConfigError(
                f"vllm.tensor_parallel_size={ranks}: the model's {name}={size} cannot be divided between so many "
                "ranks. Use another number of ranks."
            )


def arguments(
    settings: VllmSettings, noise: Noise, base_model: BaseModelInfo, *, source: ModelSource, dtype: str
) -> dict[str, Any]:
    """Return all engine arguments of vLLM."""
    from seedtune.engines.vllm.logits_processor import TokenProcessor

    given = {name: value for name, value in settings.model_dump().items() if value is not None}
    del given["weights_memory"]
    memory = {} if MEMORY & given.keys() else _memory(settings, base_model, noise, dtype=dtype)
    chosen = memory | {"enforce_eager": compat.on_cpu(), "async_scheduling": False} | given
    chosen |= {
        "model": source.location,
        **source.options,
        "dtype": dtype,
        "trust_remote_code": source.trust_remote_code,
        "skip_tokenizer_init": True,
        "disable_log_stats": True,
        "worker_extension_cls": "seedtune.engines.vllm.worker_extension.WorkerExtension",
        "logits_processors": [TokenProcessor],  # the class, not its name: so workers import it before they are created
    }
    slots = chosen.pop("max_loras")
    if noise.perturbation == "lowrank":
        _check_adapters(dtype)
        chosen |= _lora_args(noise, base_model, slots)
    return chosen


def _check_adapters(dtype: str) -> None:
    """Raise ConfigError for adapters in a precision that vLLM's kernels for GPUs do not multiply."""
    if dtype == "float32" and not compat.on_cpu():
        raise ConfigError(
            "engine=vllm, perturbation=lowrank, dtype=float32: on a GPU vLLM multiplies adapters in 16 bits "
            "only. Use dtype=bfloat16, perturbation=gaussian, or engine=transformers."
        )


def _lora_args(noise: Noise, base_model: BaseModelInfo, members: int) -> dict[str, Any]:
    slots = members + compat.unperturbed_needs_lora()
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": slots,
        "max_lora_rank": compat.lora_rank(noise.rank),
        "lora_target_modules": sorted({name.split(".")[-2] for name in base_model.shapes}),
    }


def _memory(settings: VllmSettings, base_model: BaseModelInfo, noise: Noise, *, dtype: str) -> dict[str, Any]:
    """Return vLLM's memory limit, which leaves room for the current weights."""
    if compat.on_cpu():
        return {"kv_cache_memory_bytes": CPU_CACHE}
    if settings.weights_memory == "host":
        return {"gpu_memory_utilization": SHARE}
    total = compat.device_memory()
    each = 4 if noise.weights_dtype == "float32" else getattr(torch, dtype).itemsize
    weights = each * base_model.size / settings.tensor_parallel_size
    share = SHARE - weights / total
    if share < 0.1:
        raise ConfigError(
            f"weights take {weights / 2**30:.1f} of a GPU's {total / 2**30:.0f} GiB, which leaves vLLM no room. Use "
            "vllm.weights_memory=host, weights_dtype=model, a larger vllm.tensor_parallel_size, "
            "or train a part of the model (trainable)."
        )
    return {"gpu_memory_utilization": round(share, 3)}
