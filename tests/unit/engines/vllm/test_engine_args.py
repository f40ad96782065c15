"""The arguments that vLLM is started with on a GPU, told by a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM", exc_type=ImportError)

from seedtune.config.config import Config
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.vllm import compat, engine_args
from seedtune.errors import ConfigError
from seedtune.numerics.noise import Noise

GAUSSIAN = {"perturbation": "gaussian"}


@pytest.fixture(autouse=True)
def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "on_cpu", lambda: False)
    monkeypatch.setattr(compat, "device_memory", lambda: 10 << 30)


@pytest.mark.parametrize(
    ("noise", "settings", "share"),
    [
        ({}, {}, 0.5),  # 4 of 10 GiB
        ({"weights_dtype": "model"}, {}, 0.7),
        ({}, {"tensor_parallel_size": 2}, 0.7),
        ({}, {"weights_memory": "host"}, 0.9),
        ({}, {"gpu_memory_utilization": 0.3}, 0.3),
    ],
)
def test_vllm_leaves_the_current_weights_their_share_of_a_gpu(
    noise: dict[str, Any], settings: dict[str, Any], share: float
) -> None:
    base_model: Any = SimpleNamespace(size=1 << 30)
    place = {"source": ModelSource("model", "model"), "dtype": "bfloat16"}
    found = engine_args.arguments(Config(vllm=settings).vllm, Noise(7, **GAUSSIAN, **noise), base_model, **place)
    assert (found["gpu_memory_utilization"], "weights_memory" in found) == (pytest.approx(share), False)
    base_model.size <<= 2
    if share == 0.5:
        with pytest.raises(ConfigError, match=r"weights take 16\.0 of a GPU's 10 GiB.*vllm\.weights_memory=host"):
            engine_args.arguments(Config().vllm, Noise(7, **GAUSSIAN), base_model, **place)


def test_adapters_in_float32_are_refused_where_vllms_kernels_have_none() -> None:
    base_model: Any = SimpleNamespace(size=1 << 20, shapes={"layers.0.up_proj.weight": (8, 8)})
    place = {"source": ModelSource("model", "model")}
    found = engine_args.arguments(Config().vllm, Noise(7), base_model, **place, dtype="bfloat16")
    assert found["lora_target_modules"] == ["up_proj"]
    with pytest.raises(ConfigError, match=r"dtype=float32: on a GPU vLLM .* 16 bits only\. Use dtype=bfloat16"):
        engine_args.arguments(Config().vllm, Noise(7), base_model, **place, dtype="float32")
