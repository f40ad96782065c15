"""Decoder layers in the form for GPUs, in Triton's interpreter: members are materialised models; few launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.compiler.errors import CompilationError

from models import (
    FAMILIES,
    answers,
    assert_members_are_materialised_models,
    job,
    load_engine,
    save_family,
    save_model,
    text_prompts,
)
from seedtune.engines.transformers import device
from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.engines.transformers.gpu_kernels import layer_launches
from seedtune.types import UNPERTURBED, Member, Term, Update

MEMBERS = (Member(3, 0, 1), Member(3, 0, -1), UNPERTURBED, Member(2, 9, -1))
PROMPTS = text_prompts("Hello there", "x", "The quick brown fox")
LOWRANK: dict[str, Any] = {"rank": 2}
GAUSSIAN: dict[str, Any] = {"noise": {"perturbation": "gaussian"}}
FLIPOUT: dict[str, Any] = {"noise": {"perturbation": "flipout"}}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "KERNELS", False)
    monkeypatch.setattr(device, "INTERPRETED", True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: save_family(family, tmp_path_factory.mktemp(family)))


@pytest.mark.parametrize(
    ("family", "mode"),
    [("llama", LOWRANK), ("qwen2", GAUSSIAN), ("qwen3", LOWRANK), ("mistral", LOWRANK), ("llama-head8", GAUSSIAN)],
    ids=["llama", "qwen2", "qwen3", "mistral", "llama-head8"],
)
def test_members_in_fused_layers_are_materialised_models(
    family: str, mode: dict[str, Any], folders: Callable[[str], Path]
) -> None:
    """Biases, norms of heads, a window shorter than the text, small heads."""
    engine = load_engine(folders(family), products="library", **mode)
    assert engine.fused == {"layers": 2}
    assert_members_are_materialised_models(engine, folders(family), MEMBERS, PROMPTS, sigma=0.05, new=5)


def test_other_members_and_an_update_rewrite_the_further_columns(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(folders("llama"), products="library", **LOWRANK)
    monkeypatch.setattr(device, "INTERPRETED", False)
    plain = load_engine(folders("llama"), products="library", **LOWRANK)
    assert plain.fused == {}
    few, others = MEMBERS[:2], (Member(4, 1, 1), Member(4, 2, -1), Member(4, 3, 1))
    for turn, members in enumerate((few, others, (UNPERTURBED,), few)):
        work = job(PROMPTS, members=members, max_tokens=4, ignore_eos=True)
        assert answers(engine, work) == answers(plain, work)
        for each in (engine, plain):
            each.apply(Update(turn, (Term(turn, 0, 0.05),)))


def test_members_that_are_no_further_inputs_take_the_models_own_layers(folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders("llama"), products="library", **FLIPOUT)
    assert engine.fused == {"layers": 2}
    assert_members_are_materialised_models(engine, folders("llama"), MEMBERS, PROMPTS, sigma=0.05, new=4)


@pytest.mark.parametrize("family", ["gemma2", "phi3", "gpt2", "mixtral", "deepseek-v3"])
def test_layers_of_another_formula_are_left_alone(family: str, folders: Callable[[str], Path]) -> None:
    assert load_engine(folders(family), products="library").fused == {"layers": 0}


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"mlp_bias": True}, {"attention_bias": True}])
def test_layers_with_another_gate_or_further_biases_are_left_alone(change: dict[str, Any], tmp_path: Path) -> None:
    config = FAMILIES["llama"]()
    config.update(change)
    assert load_engine(save_model(config, tmp_path), products="library").fused == {"layers": 0}


def test_where_triton_does_not_compile_layers_stay_and_it_is_said(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise CompilationError("", None, "no such target")

    monkeypatch.setattr(layer_launches, "_launch", refused)
    engine = load_engine(folders("llama"), products="library")
    assert engine.fused == {"layers": 0}
    assert "layers are not fused, which is slower: Triton's kernels do not compile here" in caplog.text
    assert answers(engine, job(PROMPTS, members=MEMBERS, max_tokens=3))


class Launches(TorchDispatchMode):
    """Counts torch's operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal")
        self.count += not (function.is_view or name in ("_unsafe_view", "empty", "empty_like", "new_empty"))
        return function(*args, **(kwargs or {}))


def launches(layers: int, mode: dict[str, Any], folder: Path) -> int:
    """Launches of the last decode step of a Llama; the kernels themselves are not run."""
    config = FAMILIES["llama"]()
    config.num_hidden_layers = layers
    engine = load_engine(save_model(config, folder), products="library", **mode)
    assert engine.fused == {"layers": layers}
    found: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        run, triton = SlotAttention.run, list[str]()

        def counted(*arguments: Any, **options: Any) -> torch.Tensor:
            triton.clear()
            with Launches() as torchs:
                logits = run(*arguments, **options)
            found.append(torchs.count + len(triton))
            return logits

        patch.setattr(SlotAttention, "run", counted)
        patch.setattr(layer_launches, "_launch", lambda name, *_, **__: triton.append(name))
        answers(engine, job(PROMPTS, members=MEMBERS, max_tokens=4, ignore_eos=True))
    return found[-1]


@pytest.mark.parametrize(("mode", "most"), [(LOWRANK, 10), (GAUSSIAN, 9)], ids=["lowrank", "gaussian"])
def test_a_decode_step_has_ten_launches_a_layer(mode: dict[str, Any], most: int, tmp_path: Path) -> None:
    two, four = launches(2, mode, tmp_path / "two"), launches(4, mode, tmp_path / "four")
    assert (four - two) / 2 <= most
