"""Where the transformers engine is: its members at a shift of the weights, its weights pulled to the base model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import references
from models import (
    ATOL,
    FAMILIES,
    answers,
    forced_logits,
    job,
    load_engine,
    numpy_copy,
    numpy_weights,
    on_cpu,
    recorded_logits,
    save_family,
    text_prompts,
)
from seedtune.engines.transformers.base_weights import BaseWeights
from seedtune.engines.transformers.checkpoint import ModelSource
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.transformers.members.weight_format import as_tensor
from seedtune.engines.transformers.product_choice import available
from seedtune.errors import DataError, ModelError, StorageError
from seedtune.numerics.noise import key
from seedtune.numerics.rounding import widen
from seedtune.types import UNPERTURBED, Decay, Job, Member, Shift, Term, Update

MEMBERS = (Member(3, 0, 1), UNPERTURBED, Member(2, 9, -1))
PROMPTS = text_prompts("Hello there", "x")
TERMS = (Term(2, 9, 0.02), Term(3, 0, -0.05), Term(1, 1, 0.01))
SHIFT = Shift(TERMS)
STEP = Update(3, TERMS)
FIRST = Update(1, (Term(0, 4, 0.03),))

HOW: dict[str, tuple[str, str, Mapping[str, Any]]] = {
    "lowrank-tied": ("llama", "bfloat16", {}),
    "lowrank-rank2-float32": ("llama-untied", "float32", {"rank": 2}),
    "lowrank-conv1d": ("gpt2", "bfloat16", {}),
    "lowrank-model": ("llama-untied", "bfloat16", {"weights_dtype": "model"}),
    "lowrank-model-float16": ("gpt2", "float16", {"weights_dtype": "model"}),
    "lowrank-frozen": ("qwen2", "float32", {"trainable": ("!*.mlp.*",)}),
    "gaussian-tied": ("llama", "bfloat16", {"perturbation": "gaussian"}),
    "gaussian-conv1d": ("gpt2", "float32", {"perturbation": "gaussian"}),
    "gaussian-model": ("llama", "bfloat16", {"perturbation": "gaussian", "weights_dtype": "model"}),
    "gaussian-frozen": ("mixtral", "float32", {"perturbation": "gaussian", "trainable": ("!*embed*",)}),
}
"""Name → family, type of the model and of the checkpoint, noise."""
FLOAT32 = {name: how for name, how in HOW.items() if how[1] == "float32"}

PRODUCTS = {
    "lowrank-tied": "bf16dot",
    "lowrank-rank2-float32": "fma32",
    "lowrank-conv1d": "fma32",
    "lowrank-model": "library",
    "lowrank-model-float16": "library",
    "lowrank-frozen": "library",
    "gaussian-tied": "fma32",
    "gaussian-conv1d": "library",
    "gaussian-model": "bf16dot",
    "gaussian-frozen": "fma32",
}
"""Each two of perturbation, type and products meet."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    @cache
    def folder(family: str, dtype: str = "float32") -> Path:
        return save_family(family, tmp_path_factory.mktemp(family), dtype=getattr(torch, dtype))

    return folder


@pytest.fixture(params=HOW.values(), ids=HOW)
def make(request: pytest.FixtureRequest, folders: Callable[..., Path]) -> Callable[..., TransformersEngine]:
    """Loaded engines of one model and noise; settings may differ."""
    family, dtype, noise = request.param
    others = {key: value for key, value in noise.items() if key != "rank"}
    return lambda **more: load_engine(
        folders(family, dtype), rank=noise.get("rank", 1), noise=others, dtype=dtype, **more
    )


def shifted(work: Job, shift: Shift = SHIFT) -> Job:
    return Job(work.id, work.sigma, work.members, work.prompts, work.sampling, shift)


def logits_of(engine: TransformersEngine, work: Job) -> list[torch.Tensor]:
    with recorded_logits() as seen:
        answers(engine, work)
    return [torch.stack(rows) for _, rows in sorted(seen.items())]


WORK = job(PROMPTS, members=MEMBERS, sigma=0.05, max_tokens=3)


@pytest.mark.parametrize(
    ("make", "products"), [(HOW[name], one) for name, one in PRODUCTS.items()], ids=PRODUCTS, indirect=["make"]
)
def test_a_shifted_job_gives_the_logits_of_weights_that_were_moved(make: Callable[..., Any], products: str) -> None:
    still = make()
    if products not in available(still.dtype, still.device):
        pytest.skip(f"this processor has no {products} for {still.dtype}")
    still, moved = make(products=products), make(products=products)
    for engine in (still, moved):
        engine.apply(FIRST)
    moved.apply(STEP)
    expected = logits_of(moved, WORK)
    assert all(map(torch.equal, logits_of(still, shifted(WORK)), expected))
    assert not any(map(torch.equal, logits_of(still, WORK), expected))


def test_after_a_shifted_job_the_current_and_the_live_weights_are_as_before(make: Callable[..., Any]) -> None:
    engine = make()
    fingerprint, before = engine.fingerprint(), logits_of(engine, WORK)
    logits_of(engine, shifted(WORK))
    assert engine.fingerprint() == fingerprint
    assert all(map(torch.equal, logits_of(engine, WORK), before))
    logits_of(engine, shifted(WORK))
    engine.apply(STEP)
    fresh = make()
    fresh.apply(STEP)
    assert engine.fingerprint() == fresh.fingerprint()
    assert all(map(torch.equal, logits_of(engine, WORK), logits_of(fresh, WORK)))


@on_cpu
def test_a_shifted_job_from_mapped_weights_is_the_same(make: Callable[..., Any], tmp_path: Path) -> None:
    plain, mapped = make(), make(weights_folder=str(tmp_path))
    assert all(map(torch.equal, logits_of(mapped, shifted(WORK)), logits_of(plain, shifted(WORK))))
    assert mapped.fingerprint() == plain.fingerprint()
    assert list(tmp_path.iterdir()) == []


def test_the_norm_of_terms_is_how_far_they_move_the_current_weights(make: Callable[..., Any]) -> None:
    engine = make()
    if engine.noise.weights_dtype == "model":
        pytest.skip("stochastic rounding adds to the way")
    before = numpy_weights(engine)
    norm = engine.norm(TERMS)
    engine.apply(STEP)
    ways = [(array.astype(np.float64) - before[name]).ravel() for name, array in numpy_weights(engine).items()]
    assert math.isclose(norm, float(np.linalg.norm(np.concatenate(ways))), rel_tol=1e-5)


def test_a_shift_of_a_length_goes_that_far(make: Callable[..., Any]) -> None:
    engine = make()
    step = engine.weights.step(Shift(TERMS, 0.5))
    assert math.isclose(engine.norm(step.terms), 0.5, rel_tol=1e-6)
    assert step.generation == 3


def test_a_lowrank_shift_takes_no_second_copy_of_the_weights(folders: Callable[..., Path]) -> None:
    engine = load_engine(folders("llama", "bfloat16"), dtype="bfloat16")
    held = {id(array) for array in engine.weights.tensors.values()}
    copies: list[int] = []
    part = type(engine.weights).part

    def counted(weights: Any, tensors: Mapping[str, Any]) -> Any:
        copies.append(sum(array.nbytes for array in tensors.values()))
        return part(weights, tensors)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine.weights), "part", counted)
        answers(engine, shifted(WORK))
    largest = max(
        sum(engine.weights.tensors[f"{p.name}.weight"].nbytes for p in g.parts) for g in engine.perturbation.groups
    )
    assert max(copies) == largest
    assert len(copies) == len(engine.perturbation.groups)
    assert {id(array) for array in engine.weights.tensors.values()} == held


# ------------------------------------------------------------------------------------------------ the base weights


def base_of(engine: TransformersEngine) -> dict[str, np.ndarray]:
    """What transformers loads from the engine's folder, float32."""
    parameters = dict(engine.source.load().named_parameters())
    return {name: parameters[name].detach().float().numpy() for name in engine.weights.tensors}


def decayed(engine: TransformersEngine, update: Update) -> dict[str, np.ndarray]:
    """The weights after an update, by the plainest numpy."""
    noise, base, after = engine.noise, base_of(engine), {}
    for name, theta in numpy_weights(engine).items():
        rank = noise.rank if noise.perturbation == "lowrank" else None
        where = key(noise.run_seed, name)
        after[name] = references.updated(theta, where, [update], rank=rank, anchor=base[name])
    return after


@pytest.mark.parametrize("terms", [(), TERMS], ids=["decay", "terms-and-decay"])
def test_a_decay_pulls_every_tensor_to_the_checkpoints_own_values(make: Callable[..., Any], terms: Any) -> None:
    engine = make()
    engine.apply(FIRST)
    update = Update(3, terms, Decay(l2=0.25, l1=1e-4))
    expected = decayed(engine, update)
    engine.apply(update)
    for name, array in numpy_weights(engine).items():
        assert references.same_bits(array, expected[name]), name


def test_a_whole_decay_goes_back_to_the_base_model(make: Callable[..., Any]) -> None:
    engine, fresh = make(), make()
    engine.apply(FIRST)
    engine.apply(Update(3, (), Decay(l2=1.0)))
    assert engine.fingerprint() == fresh.fingerprint()


def copies_of(engine: TransformersEngine) -> set[str]:
    """The base tensors that are kept as copies, once all are needed."""
    engine.apply(Update(9, (), Decay(l2=0.1)))
    return set(engine.anchor._copies) if len(engine.anchor._stored) < len(engine.anchor._seen) else set()


@pytest.mark.parametrize("family", FAMILIES)
def test_base_weights_are_those_of_the_checkpoint_in_every_family(family: str, folders: Callable[..., Path]) -> None:
    engine = load_engine(folders(family), noise={"perturbation": "gaussian"})  # perturbs every tensor
    for name, base in base_of(engine).items():
        assert references.same_bits(numpy_copy(engine.anchor(name)), base), name


def test_nothing_is_kept_of_a_checkpoint_that_can_be_streamed(folders: Callable[..., Path]) -> None:
    for family in ("llama", "llama-untied", "gpt2", "qwen2"):
        assert copies_of(load_engine(folders(family), noise={"perturbation": "gaussian"})) == set()


def test_layouts_that_are_converted_while_loading_are_kept_as_copies(folders: Callable[..., Path]) -> None:
    copies = copies_of(load_engine(folders("mixtral"), noise={"perturbation": "gaussian"}))
    assert copies
    assert all(".mlp." in name for name in copies)


def test_base_weights_are_streamed_from_a_sharded_checkpoint(tmp_path: Path) -> None:
    save_family("llama", tmp_path / "one")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "many", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "many", max_shard_size="10KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    whole, sharded = load_engine(tmp_path / "one"), load_engine(tmp_path / "many")
    for engine in (whole, sharded):
        engine.apply(FIRST, Update(3, TERMS, Decay(l2=0.25)))
    assert sharded.fingerprint() == whole.fingerprint()
    assert copies_of(sharded) == set()


def test_names_without_the_base_models_prefix_are_found(tmp_path: Path) -> None:
    save_family("gpt2", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    engine = load_engine(tmp_path)
    assert copies_of(engine) == set()
    assert all(references.same_bits(numpy_copy(engine.anchor(name)), base) for name, base in base_of(engine).items())


def test_a_checkpoint_of_another_precision_than_its_configuration_is_kept_as_loaded(tmp_path: Path) -> None:
    save_family("llama", tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "dtype": "bfloat16"}))
    engine = load_engine(tmp_path)
    assert copies_of(engine) == set(engine.anchor._seen)
    base = {name: widen(numpy_copy(engine.anchor(name))) for name in engine.weights.tensors}
    assert all(references.same_bits(base[name], array) for name, array in base_of(engine).items())


def test_a_model_of_the_hub_is_read_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revision = "0" * 40
    repository = tmp_path / "models--someone--tiny"
    save_family("llama", repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = ModelSource("someone/tiny", "someone/tiny")
    model = AutoModelForCausalLM.from_pretrained(repository / "snapshots" / revision)
    base = BaseWeights(source, model, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        assert references.same_bits(base(name), parameter.detach().numpy())
    assert len(base._stored) == len(base._seen)


def test_a_checkpoint_that_changed_after_loading_is_refused(tmp_path: Path) -> None:
    save_family("llama", tmp_path)
    engine = load_engine(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] += 1.0
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    before = engine.fingerprint()
    with pytest.raises(ModelError, match=r"has changed since it was loaded: .model\.layers\.0\.mlp\.up_proj\.weight"):
        engine.apply(Update(3, (), Decay(l2=0.1)))
    assert engine.fingerprint() == before


def test_a_checkpoint_cut_short_while_in_use_is_refused(tmp_path: Path) -> None:
    save_family("llama", tmp_path)
    engine = load_engine(tmp_path)
    engine.apply(Update(3, (), Decay(l2=0.1)))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(StorageError, match=r"model\.safetensors.*Get the file again"):
        engine.apply(Update(4, (), Decay(l2=0.1)))


def test_the_drift_is_measured_from_the_checkpoints_own_values(make: Callable[..., Any]) -> None:
    engine = make()
    assert engine.drift() == 0.0
    engine.apply(FIRST, STEP)
    base = base_of(engine)
    ways = [(widen(array).astype(np.float64) - base[name]).ravel() for name, array in numpy_weights(engine).items()]
    assert math.isclose(engine.drift(), float(np.linalg.norm(np.concatenate(ways))), rel_tol=1e-12)
    assert engine.cosine(FIRST.terms, FIRST.terms) == pytest.approx(1.0)
    assert abs(engine.cosine(FIRST.terms, TERMS)) < 0.3


# ------------------------------------------------------------------------------------------------ log-probabilities

TEXTS = text_prompts("Hello there", "x", "Hello there, you", "Hello")
COMPLETIONS = ((5, 17, 60, 33), (9,), (5, 17, 8, 40, 41, 42), ())


def assert_close(found: list[list[float]], expected: list[list[float]], *, atol: float) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, other, atol=atol, rtol=0)


def plain(engine: TransformersEngine, tensors: Mapping[str, np.ndarray]) -> list[list[float]]:
    """By a plain Hugging Face model in float32 with these weights."""
    model = AutoModelForCausalLM.from_pretrained(engine.source.location, dtype=torch.float32).eval()
    found, parameters = [], dict(model.named_parameters())
    with torch.no_grad():
        for name, array in tensors.items():
            parameters[name].copy_(as_tensor(array))
    for prompt, tokens in zip(TEXTS, COMPLETIONS, strict=True):
        ids = list(engine.tokenizer.hf(prompt.content)["input_ids"])
        rows = forced_logits(model, ids, tokens).log_softmax(-1) if tokens else torch.zeros(0, 1)
        found.append([float(row[token]) for row, token in zip(rows, tokens, strict=True)])
    return found


@pytest.mark.parametrize("make", FLOAT32.values(), ids=FLOAT32, indirect=True)
def test_log_probabilities_are_those_of_hugging_face(make: Callable[..., Any]) -> None:
    engine = make()
    at_base = plain(engine, {})
    assert_close(engine.logprobs(TEXTS, COMPLETIONS), at_base, atol=ATOL)
    engine.apply(FIRST)
    answers(engine, shifted(WORK))
    moved = plain(engine, numpy_weights(engine))
    for engine.prefill_tokens in (4096, 20, 1):
        assert_close(engine.logprobs(TEXTS, COMPLETIONS), moved, atol=ATOL)
        assert_close(engine.logprobs(TEXTS, COMPLETIONS, base=True), at_base, atol=ATOL)


def test_log_probabilities_by_the_base_model_leave_everything_as_it_was(make: Callable[..., Any]) -> None:
    engine, fresh = make(), make()
    engine.apply(FIRST)
    fingerprint, before, own = engine.fingerprint(), logits_of(engine, WORK), engine.logprobs(TEXTS, COMPLETIONS)
    assert engine.logprobs(TEXTS, COMPLETIONS, base=True) == fresh.logprobs(TEXTS, COMPLETIONS) != own
    assert all(map(torch.equal, logits_of(engine, WORK), before))
    assert engine.logprobs(TEXTS, COMPLETIONS) == own
    assert engine.fingerprint() == fingerprint


def test_a_completion_beyond_the_context_is_refused(folders: Callable[..., Path]) -> None:
    engine = load_engine(folders("llama"))
    with pytest.raises(DataError, match="exceeds the model's context of 64"):
        engine.logprobs(TEXTS[:1], [tuple(range(60))])
