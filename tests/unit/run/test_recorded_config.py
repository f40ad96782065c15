"""A run's settings on another engine: what goes along, and what cannot be changed."""

from __future__ import annotations

from typing import Any

import pytest

from seedtune import Config
from seedtune.errors import ConfigError, ModelError
from seedtune.run.recorded_config import for_weights, hinting, with_settings

SERVED: dict[str, Any] = {
    "engine": "vllm",
    "dtype": "float32",
    "trust_remote_code": True,
    "vllm": {"max_loras": 4, "block_size": 32},
    "weights_dtype": "model",
    "perturbation": "gaussian",
}


def test_the_weights_of_a_run_of_vllm_come_back_without_it_in_its_precision() -> None:
    config = for_weights(Config.create(SERVED), model="elsewhere")
    assert (config.engine, config.dtype, config.model) == ("transformers", "float32", "elsewhere")
    assert config.trust_remote_code


def test_another_engine_is_taken_if_it_is_asked_for() -> None:
    recorded = Config.create(SERVED)
    assert for_weights(recorded, ["engine=vllm", "vllm.tensor_parallel_size=2"]).vllm.tensor_parallel_size == 2
    assert for_weights(recorded, ["engine=vllm"]).vllm == recorded.vllm
    back = for_weights(with_settings(recorded, ["engine=transformers"]), ["engine=vllm", "dtype=bfloat16"])
    assert (back.engine, back.dtype, back.trust_remote_code) == ("vllm", "bfloat16", True)


def test_a_run_of_the_others_stays_where_it_is() -> None:
    for engine in ("transformers", "toy"):
        recorded = Config.create({"engine": engine})
        assert for_weights(recorded) == recorded
    assert for_weights(Config(), ["transformers.device=cpu"]).transformers.device == "cpu"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("sigma=0.5", r"sigma: 0.001 → 0.5.*Leave that out"),
        ("weights_dtype=float32", r"weights_dtype: 'model' → 'float32'"),
        ("engine=tpu", r"engine='tpu': must be 'transformers', 'vllm', 'toy' or 'ray'"),
        ("engin=vllm", r"unknown setting 'engin'"),
        ("vllm.tensor_parallel_size=2", r"is for engine=vllm, but engine=transformers brings.*Give engine=vllm, too"),
        ("transformers.dtyp=float32", r"unknown setting 'transformers.dtyp'"),
    ],
)
def test_settings_that_weights_depend_on_or_that_do_not_exist_are_refused(wrong: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        for_weights(Config.create(SERVED), [wrong])


def test_what_the_other_engine_refuses_names_the_runs_own() -> None:
    with (
        pytest.raises(ModelError, match=r"Too odd\. Or use the engine .*: --set engine=vllm\."),
        hinting("vllm", Config()),
    ):
        raise ModelError("Too odd.")
    with pytest.raises(ModelError, match=r"^Too odd\.$"), hinting("transformers", Config()):
        raise ModelError("Too odd.")
