"""Starts of vLLM that fail."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM", exc_type=ImportError)

from models import save_family, save_model
from seedtune.config.config import Config
from seedtune.engines.vllm.engine import VllmEngine
from seedtune.errors import ConfigError, ModelError
from seedtune.numerics.noise import Noise
from serving import SERVED, SMALL, end_all, save_served

GAUSSIAN = {"perturbation": "gaussian"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    end_all()
    return cache(lambda family: save_served(family, tmp_path_factory.mktemp(family)))


def engine_of(folder: Path, noise: dict[str, Any] = GAUSSIAN, **settings: Any) -> VllmEngine:
    return VllmEngine(Config(model=str(folder), vllm={**SMALL, **settings}), noise=Noise(7, **noise))


def test_too_little_memory_for_one_completion_is_said_at_the_start(folder: Any) -> None:
    with pytest.raises(ConfigError, match=r"kv_cache_memory_bytes=40000: To serve at least one request"):
        engine_of(folder("llama"), kv_cache_memory_bytes=40000).load()


def test_a_tensor_that_vllm_leaves_out_is_no_way_to_another_model(tmp_path: Path) -> None:
    """vLLM's Qwen3 has no bias after its attention, wherever a checkpoint has one."""
    config = SERVED["qwen3"]()
    config.attention_bias = True
    folder = save_model(config, tmp_path)
    for noise in (GAUSSIAN, {"perturbation": "lowrank"}, {**GAUSSIAN, "trainable": ("!*.bias",)}):
        with pytest.raises(ModelError, match=r"o_proj\.bias.*or leaves it out. Use engine=transformers"):
            engine_of(folder, noise).load()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"intermediate_size": 97}, r"tensor_parallel_size=2: the model's intermediate_size=97 cannot be divided"),
        ({"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}, r"num_attention_heads=3"),
        ({"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}, r"num_key_value_heads=3"),
    ],
)
def test_what_ranks_cannot_share_is_named(changed: dict[str, int], message: str, tmp_path: Path) -> None:
    config = SERVED["llama"]()
    for name, value in changed.items():
        setattr(config, name, value)
    with pytest.raises(ConfigError, match=message):
        engine_of(save_model(config, tmp_path), tensor_parallel_size=2).load()


def test_models_that_cannot_be_mapped_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Use engine=transformers"):
        engine_of(save_family("gpt2", tmp_path)).load()
