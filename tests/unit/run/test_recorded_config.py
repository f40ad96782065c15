"""A run's settings on another engine: what goes along, and what cannot be changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ledgers import HEADER
from seedtune import ESConfig
from seedtune.errors import ConfigError, LedgerError, ModelError, RunError
from seedtune.run import sealing
from seedtune.run.recorded_config import (
    as_written,
    check_same_run,
    config_of,
    for_weights,
    hinting,
    with_settings,
)

SERVED: dict[str, Any] = {
    "engine": "vllm",
    "sigma": 0.001,
    "dtype": "float32",
    "trust_remote_code": True,
    "vllm": {"max_loras": 4, "block_size": 32},
    "weights_dtype": "model",
    "perturbation": "gaussian",
}


def test_the_weights_of_a_run_of_vllm_come_back_without_it_in_its_precision() -> None:
    config = for_weights(ESConfig.create(SERVED), model="elsewhere")
    assert (config.engine, config.dtype, config.model) == ("transformers", "float32", "elsewhere")
    assert config.trust_remote_code


def test_another_engine_is_taken_if_it_is_asked_for() -> None:
    recorded = ESConfig.create(SERVED)
    assert for_weights(recorded, ["engine=vllm", "vllm.tensor_parallel_size=2"]).vllm.tensor_parallel_size == 2
    assert for_weights(recorded, ["engine=vllm"]).vllm == recorded.vllm
    back = for_weights(with_settings(recorded, ["engine=transformers"]), ["engine=vllm", "dtype=bfloat16"])
    assert (back.engine, back.dtype, back.trust_remote_code) == ("vllm", "bfloat16", True)


def test_a_setting_that_came_after_a_ledger_is_at_its_default_there(tmp_path: Path) -> None:
    config = ESConfig.create({"engine": "toy"})
    older = {name: value for name, value in config.identity().items() if name != "shared_noise"}
    check_same_run(tmp_path, replace(HEADER, config=older), config)
    changed = ESConfig.create({"engine": "toy", "perturbation": "flipout", "shared_noise": 4})
    with pytest.raises(RunError, match="shared_noise: 1 → 4"):
        check_same_run(tmp_path, replace(HEADER, config=older), changed)


def test_a_run_of_the_others_stays_where_it_is() -> None:
    for engine in ("transformers", "toy"):
        recorded = ESConfig.create({"engine": engine})
        assert for_weights(recorded) == recorded
    assert for_weights(ESConfig(), ["transformers.device=cpu"]).transformers.device == "cpu"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("sigma=0.5", r"sigma: 0.001 → 0.5.*Leave that out"),
        ("weights_dtype=float32", r"weights_dtype: 'model' → 'float32'"),
        ("engine=tpu", r"engine='tpu': must be 'transformers', 'vllm', 'toy' or 'ray'"),
        ("engin=vllm", r"unknown setting 'engin'"),
        ("vllm.tensor_parallel_size=2", r"is for engine=vllm, but engine=transformers brings.*Give engine=vllm, too"),
        ("transformers.dtyp=float32", r"unknown setting 'transformers.dtyp'"),
    ],
)
def test_settings_that_weights_depend_on_or_that_do_not_exist_are_refused(wrong: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        for_weights(ESConfig.create(SERVED), [wrong])


def test_what_the_other_engine_refuses_names_the_runs_own() -> None:
    with (
        pytest.raises(ModelError, match=r"Too odd\. Or use the engine .*: --set engine=vllm\."),
        hinting("vllm", ESConfig()),
    ):
        raise ModelError("Too odd.")
    with pytest.raises(ModelError, match=r"^Too odd\.$"), hinting("transformers", ESConfig()):
        raise ModelError("Too odd.")


@pytest.mark.parametrize(
    "line",
    [
        "model: $SECRET",
        "model: ${SECRET}",
        "model: ~/base",
        "task: /$SECRET/a.py:f",
        "environment: ~/a.py:f",
        "environment: {shop: ~/a.py:f}",
        "eval_tasks: [$SECRET/a.py:f]",
        "train_dataset: $SECRET/rows.jsonl",
        "transformers: {weights_folder: $SECRET}",
    ],
)
def test_a_path_of_anothers_run_is_not_expanded(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hf_token")
    monkeypatch.setenv("HOME", "/hf_token")
    (tmp_path / "config.yaml").write_text(line)
    with pytest.raises(ConfigError, match="expanded in your own files only: write the path in full") as refused:
        as_written(tmp_path)
    assert "hf_token" not in str(refused.value)
    (tmp_path / "config.yaml").write_bytes(sealing.marked(f"{line}\n".encode()))
    assert "hf_token" in str(as_written(tmp_path)[0])


def test_the_model_of_a_ledger_is_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hf_token")
    header = replace(HEADER, model="$SECRET", config=ESConfig(engine="toy").identity())
    with pytest.raises(LedgerError, match="write the path in full") as refused:
        config_of(header)
    assert "hf_token" not in str(refused.value)
