"""Decoder layers run with compiled passes give the bits of the layers they stand for."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from models import answers, job, load_engine, on_cpu, recorded_logits, save_family, text_prompts
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.transformers.fused import fuse
from seedtune.engines.transformers.fused.decoder_layer import FusedLayer, fused_layer
from seedtune.engines.transformers.product_choice import available
from seedtune.types import UNPERTURBED, Member

pytestmark = on_cpu

MEMBERS = (Member(1, 0, 1), Member(1, 0, -1), UNPERTURBED, Member(1, 4, 1))
PROMPTS = text_prompts("Hello there", "x", "The quick brown fox jumps", limits=[8, 3, 6])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])

Logits = dict[tuple[int, int, int], list[torch.Tensor]]


def logits_of(engine: TransformersEngine) -> Logits:
    with recorded_logits() as logits:
        answers(engine, job(PROMPTS, members=MEMBERS, ignore_eos=True))
    return logits


def unfused(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> TransformersEngine:
    monkeypatch.setattr(fuse, "fused_layer", lambda *_: None)
    return load_engine(folder, **options)


def equal(found: Logits, expected: Logits) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(torch.stack(found[key]), torch.stack(expected[key])) for key in found
    )


@DTYPES
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("family", ["llama", "llama-head8", "qwen2", "mistral"])
def test_fused_layers_give_the_bits_of_the_plain_path(
    family: str, rank: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_family(family, tmp_path)
    engine = load_engine(folder, rank=rank, dtype=dtype)
    assert engine.fused["layers"] == 2
    plain = unfused(folder, monkeypatch, rank=rank, dtype=dtype)
    assert plain.fused["layers"] == 0
    assert equal(logits_of(engine), logits_of(plain))


@DTYPES
def test_a_gaussian_members_layers_are_fused_too(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, noise = save_family("llama", tmp_path), {"perturbation": "gaussian"}
    engine = load_engine(folder, noise=noise, dtype=dtype)
    assert engine.fused["layers"] == 2
    assert equal(logits_of(engine), logits_of(unfused(folder, monkeypatch, noise=noise, dtype=dtype)))


def test_a_layer_with_a_product_that_is_not_a_group_keeps_its_own_code(tmp_path: Path) -> None:
    engine = load_engine(save_family("llama", tmp_path), noise={"trainable": ("!*.1.mlp.up_proj*",)})
    assert engine.fused["layers"] == 1
    assert isinstance(engine.model.model.layers[1], LlamaDecoderLayer)


def test_layers_of_other_formulas_keep_their_own_code(tmp_path: Path) -> None:
    for family in ("qwen3", "gemma2", "mixtral", "gpt2"):
        assert load_engine(save_family(family, tmp_path / family)).fused["layers"] == 0


class ScaledResidual(LlamaDecoderLayer):
    """The same children and another formula."""

    def forward(self, hidden_states: torch.Tensor, **more: Any) -> torch.Tensor:
        return hidden_states + 0.5 * (super().forward(hidden_states, **more) - hidden_states)


class Paired(LlamaDecoderLayer):
    """The same formula, returned as models used to."""

    def forward(self, hidden_states: torch.Tensor, **more: Any) -> Any:
        return super().forward(hidden_states, **more), None


@pytest.mark.parametrize("kind", [ScaledResidual, Paired])
def test_a_layer_that_answers_otherwise_keeps_its_own_code(
    kind: type[LlamaDecoderLayer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = unfused(save_family("llama", tmp_path), monkeypatch)
    engine.model.model.layers[0].__class__ = kind
    before = engine.attention.cache, engine.attention.current
    assert fuse.replace_all(engine.model, fused_layer, engine.attention, torch.float32) == 1
    assert isinstance(engine.model.model.layers[0], kind)
    assert (engine.attention.cache, engine.attention.current) == before


@torch.no_grad()
def test_a_fused_layer_leaves_angles_of_another_width_to_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(save_family("llama", tmp_path))
    layer = engine.model.model.layers[0]
    assert isinstance(layer, FusedLayer)
    seen: list[Any] = []
    monkeypatch.setattr(layer._plain[0], "forward", lambda *inputs, **named: seen.append(named) or inputs[0])
    half = torch.ones(1, 3, 4)
    layer(torch.ones(1, 3, 32), position_embeddings=(half, half), past_key_values=engine.attention.cache)
    assert len(seen) == 1


def test_rows_of_another_number_than_announced_are_caught(tmp_path: Path) -> None:
    engine = load_engine(save_family("llama", tmp_path))
    logits_of(engine)
    group = engine.perturbation.groups[0]
    with pytest.raises(AssertionError, match="rows"):
        group.terms(group.state.pairs.size + 1)


@DTYPES
def test_a_member_alone_gives_the_bits_that_it_gives_among_others(dtype: str, tmp_path: Path) -> None:
    ours = [kind for kind in available(getattr(torch, dtype), torch.device("cpu")) if kind != "library"]
    engine = load_engine(save_family("llama", tmp_path), dtype=dtype, products=ours[0])
    assert engine.perturbation.groups[0].weight.form.kind == ours[0]
    together = logits_of(engine)
    for (m, member), (p, prompt) in product(enumerate(MEMBERS), enumerate(PROMPTS)):
        with recorded_logits() as alone:
            answers(engine, job((prompt,), members=(member,), ignore_eos=True))
        assert torch.equal(torch.stack(alone[0, 0, 0]), torch.stack(together[m, p, 0]))
