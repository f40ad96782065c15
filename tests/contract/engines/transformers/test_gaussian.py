"""The gaussian perturbation and weights in the model's own precision, against plain Hugging Face and numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AttentionInterface

from models import (
    FAMILIES,
    Reference,
    answers,
    assert_members_are_materialised_models,
    greedy,
    job,
    load_engine,
    numpy_weights,
    on_cpu,
    recorded_logits,
    save_family,
    text_prompts,
)
from seedtune.engines.transformers.cpu_kernels import products
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.transformers.members.weight_format import as_tensor, as_weights
from seedtune.errors import ConfigError
from seedtune.numerics import noise
from seedtune.numerics.rounding import nearest, stochastic, widen
from seedtune.types import UNPERTURBED, Member, Term, Update

GAUSSIAN = {"perturbation": "gaussian"}
MEMBERS = (Member(3, 0, 1), Member(3, 0, -1), UNPERTURBED, Member(2, 9, 1))
PROMPTS = text_prompts("Hello there", "x", "Hello therein")
SIGMA = 0.02
NEW = 6
UPDATES = (
    Update(3, (Term(3, 0, 0.01), Term(3, 1, -0.02))),
    Update(4, (Term(4, 0, -0.005), Term(3, 1, 0.004), Term(4, 2, 0.003))),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def folder(family: str) -> Path:
        return save_family(family, tmp_path_factory.mktemp(family))

    return folder


def live(engine: TransformersEngine) -> dict[str, torch.Tensor]:
    return {name: p.detach().to("cpu", copy=True) for name, p in engine.model.named_parameters()}


def normals(name: str, shape: tuple[int, ...], generation: int, pair: int) -> np.ndarray:
    address = noise.Address(noise.key(7, name), noise.Stream.GAUSSIAN, generation, pair)
    return noise.normals(address, 0, int(np.prod(shape))).reshape(shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_member_is_the_materialised_model(family: str, folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders(family), noise=GAUSSIAN)
    assert_members_are_materialised_models(engine, folders(family), MEMBERS, PROMPTS, sigma=SIGMA, new=NEW)


@pytest.mark.parametrize(("family", "perturbation"), [("llama", "gaussian"), ("gpt2", "lowrank")])
def test_a_member_of_a_subspace_is_the_materialised_model(
    family: str, perturbation: str, folders: Callable[[str], Path]
) -> None:
    engine = load_engine(folders(family), noise={"perturbation": perturbation, "subspaces": 3})
    assert_members_are_materialised_models(engine, folders(family), MEMBERS, PROMPTS, sigma=SIGMA, new=NEW)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen2"])
def test_every_parameter_is_perturbed_and_tied_ones_once(family: str, folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders(family), noise=GAUSSIAN)
    coverage = engine.perturbation.coverage
    assert coverage.perturbed == coverage.total == sum(p.numel() for p in engine.model.parameters())
    assert coverage.unperturbed == ()
    assert set(engine.weights.tensors) == {name for name, _ in engine.model.named_parameters()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("weights_dtype", ["float32", "model"])
def test_live_weights_are_the_rounded_sum_of_weights_and_noise(
    dtype: str, weights_dtype: str, folders: Callable[[str], Path]
) -> None:
    engine = load_engine(folders("llama"), noise={**GAUSSIAN, "weights_dtype": weights_dtype}, dtype=dtype)
    before = {name: widen(array) for name, array in numpy_weights(engine).items()}
    for member in (Member(5, 2, 1), UNPERTURBED, Member(5, 2, -1)):
        engine.perturbation.set_members([member], [0], sigma=SIGMA)
        for name, weight in live(engine).items():
            exact = before[name] + np.float32(member.sign * SIGMA) * normals(name, before[name].shape, 5, 2)
            expected = as_tensor(nearest((exact if member.sign else before[name]).ravel(), dtype))
            assert torch.equal(weight.ravel(), expected), name


@pytest.mark.parametrize("perturbation", ["lowrank", "gaussian"])
@pytest.mark.parametrize("weights_dtype", ["float32", "model"])
def test_a_hundred_evaluations_of_random_members_leave_the_current_weights_untouched(
    perturbation: str, weights_dtype: str, folders: Callable[[str], Path]
) -> None:
    options = {"perturbation": perturbation, "weights_dtype": weights_dtype}
    engine = load_engine(folders("llama"), noise=options, dtype="bfloat16")
    fingerprint, draw = engine.fingerprint(), np.random.default_rng(0)
    members = [Member(*map(int, draw.integers(0, 2**31, 2)), int(draw.choice([-1, 1]))) for _ in range(100)]
    found = answers(engine, job(PROMPTS[:1], members=members, max_tokens=2, sigma=0.3))
    assert len({rollout.token_ids for rollout in found.values()}) > 20
    assert engine.fingerprint() == fingerprint


def test_the_same_member_twice_gives_identical_live_weights(folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders("llama"), noise=GAUSSIAN, dtype="bfloat16")
    seen = []
    for member in (Member(1, 2, 1), Member(1, 3, -1), Member(1, 2, 1)):
        answers(engine, job(PROMPTS[:1], members=[member], max_tokens=1))
        seen.append(live(engine))
    assert all(torch.equal(seen[0][name], seen[2][name]) for name in seen[0])
    assert not all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


def lowrank(name: str, shape: tuple[int, int], term: Term) -> tuple[np.ndarray, np.ndarray]:
    address = noise.Address(noise.key(7, name), generation=term.generation, pair=term.pair)
    return noise.factors(address, shape, rank=1)


def moved(theta: np.ndarray, name: str, perturbation: str, dtype: str) -> np.ndarray:
    """The updates one after the other, by the plainest numpy."""
    for update in UPDATES:
        total = np.zeros(theta.shape, np.float32)
        for term in update.terms:
            weight = np.float32(term.weight)
            if perturbation == "gaussian":
                total += weight * normals(name, theta.shape, term.generation, term.pair)
            else:
                a, b = lowrank(name, theta.shape, term)
                total += (weight * a) * b.T
        address = noise.Address(noise.key(7, name), noise.Stream.ROUNDING, update.generation, 0)
        codes = noise.codes(address, 0, theta.size)
        theta = stochastic((widen(theta) + total).ravel(), codes, dtype).reshape(theta.shape)
    return theta


@pytest.mark.parametrize(
    ("family", "perturbation", "weights_dtype", "dtype"),
    [
        ("llama", "lowrank", "float32", "bfloat16"),
        ("gpt2", "gaussian", "float32", "bfloat16"),
        ("gpt2", "lowrank", "model", "bfloat16"),
        ("llama", "gaussian", "model", "bfloat16"),
        ("gpt2", "lowrank", "model", "float16"),
        ("llama", "gaussian", "model", "float16"),
        ("llama", "lowrank", "model", "float32"),
        ("gpt2", "gaussian", "model", "float32"),
    ],
)
def test_updates_have_the_bits_of_the_numpy_reference(
    family: str, weights_dtype: str, dtype: str, perturbation: str, folders: Callable[[str], Path]
) -> None:
    options = {"perturbation": perturbation, "weights_dtype": weights_dtype}
    engine, apart = (load_engine(folders(family), noise=options, dtype=dtype) for _ in range(2))
    kept = "float32" if weights_dtype == "float32" else dtype
    before = numpy_weights(engine)
    engine.apply(*UPDATES)
    for name, array in numpy_weights(engine).items():
        np.testing.assert_array_equal(array, moved(before[name], name, perturbation, kept))
    for update in UPDATES:
        apart.apply(update)
    assert apart.fingerprint() == engine.fingerprint()


@pytest.mark.parametrize("perturbation", ["lowrank", "gaussian"])
@pytest.mark.parametrize("weights_dtype", ["float32", "model"])
def test_an_exported_model_holds_the_updated_weights(
    perturbation: str, weights_dtype: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"perturbation": perturbation, "weights_dtype": weights_dtype}
    engine = load_engine(folders("llama"), noise=options, dtype="bfloat16")
    engine.apply(*UPDATES)
    engine.export(tmp_path / "model", "bfloat16")
    again = load_engine(tmp_path / "model", noise=options, dtype="bfloat16")
    exported = numpy_weights(engine)
    for name, array in numpy_weights(again).items():
        expected = nearest(widen(exported[name]).ravel(), "bfloat16")
        np.testing.assert_array_equal(nearest(widen(array).ravel(), "bfloat16"), expected)


@pytest.mark.parametrize("perturbation", ["lowrank", "gaussian", "flipout"])
@pytest.mark.parametrize("weights_dtype", ["float32", "model"])
def test_a_snapshot_holds_every_bit(
    perturbation: str, weights_dtype: str, folders: Callable[[str], Path], tmp_path: Path
) -> None:
    options = {"perturbation": perturbation, "weights_dtype": weights_dtype}
    engine = load_engine(folders("gpt2"), noise=options, dtype="bfloat16")
    engine.apply(*UPDATES)
    engine.snapshot(tmp_path)
    again = load_engine(folders("gpt2"), noise=options, dtype="bfloat16")
    again.load(tmp_path)
    assert again.fingerprint() == engine.fingerprint()
    work = job(PROMPTS, members=MEMBERS, max_tokens=4)
    assert answers(again, work) == answers(engine, work)


@on_cpu
def test_weights_in_a_mapped_file_have_the_same_bits(folders: Callable[[str], Path], tmp_path: Path) -> None:
    for options in ({}, GAUSSIAN):
        plain = load_engine(folders("llama"), noise=options)
        mapped = load_engine(folders("llama"), noise=options, weights_folder=str(tmp_path))
        for engine in (plain, mapped):
            engine.apply(*UPDATES)
        assert mapped.fingerprint() == plain.fingerprint()
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("perturbation", ["lowrank", "gaussian", "flipout"])
def test_frozen_tensors_are_neither_perturbed_nor_moved_and_are_listed(
    perturbation: str, folders: Callable[[str], Path]
) -> None:
    options = {"perturbation": perturbation, "trainable": ("!*.mlp.*", "!*embed_tokens*")}
    engine = load_engine(folders("llama"), noise=options)
    assert engine.weights.tensors
    assert not any("mlp" in name or "embed" in name for name in engine.weights.tensors)
    listed = dict(engine.perturbation.coverage.unperturbed)
    assert "frozen" in listed["model.layers.*.mlp.up_proj.weight"]
    free = load_engine(folders("llama"), noise={"perturbation": perturbation})
    assert engine.perturbation.coverage.perturbed < free.perturbation.coverage.perturbed
    reference = Reference(folders("llama"), engine.weights.tensors, engine.noise)
    rollouts = answers(engine, job(PROMPTS, members=MEMBERS, sigma=SIGMA, max_tokens=NEW))
    for (member, prompt, _), rollout in rollouts.items():
        ids = list(engine.tokenizer.hf(PROMPTS[prompt].content)["input_ids"])
        assert list(rollout.token_ids) == greedy(reference.set_member(member, SIGMA), ids, NEW)


def test_only_named_tensors_train(folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders("llama"), noise={**GAUSSIAN, "trainable": ("*norm*",)})
    assert all("norm" in name for name in engine.weights.tensors)
    assert len(engine.weights.tensors) == 5


@pytest.mark.parametrize(
    "options", [{"trainable": ("*.mpl.*",)}, {"trainable": ("!model.layer.*",)}, {"trainable": ("!*",)}]
)
def test_a_selection_that_selects_nothing_is_refused(options: dict[str, Any], folders: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"matches none|leaves no tensor"):
        load_engine(folders("llama"), noise=options)


@on_cpu
def test_with_weights_dtype_model_the_lowrank_weights_are_the_live_ones(folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders("llama-untied"), noise={"weights_dtype": "model"}, dtype="bfloat16")
    arrays = list(engine.weights.tensors.values())
    assert all(array.dtype == np.uint16 for array in arrays)
    for group in engine.perturbation.groups:
        live = (
            group.weight._weight if isinstance(group.weight._weight, np.ndarray) else as_weights(group.weight._weight)
        )
        assert live.ctypes.data in {array.ctypes.data for array in arrays}


PRODUCTS = [
    (family, perturbation, ("fma32", "bf16dot")[(row + column) % 2])
    for row, family in enumerate(("llama", "llama-untied", "qwen2", "phi3", "mixtral", "gpt2"))
    for column, perturbation in enumerate(("lowrank", "gaussian", "flipout"))
]
"""Each two of family, perturbation and kind of products meet."""


@on_cpu
@pytest.mark.parametrize(("family", "perturbation", "kind"), PRODUCTS)
def test_our_products_follow_every_member_and_the_unperturbed_model(
    family: str, perturbation: str, kind: Any, folders: Callable[[str], Path]
) -> None:
    if not products.available(kind, bfloat16=True):
        pytest.skip(f"no {kind} on this processor")
    seen: list[list[torch.Tensor]] = []
    for chosen in (kind, "library"):
        options = {"perturbation": perturbation}
        engine = load_engine(folders(family), noise=options, dtype="bfloat16", products=chosen)
        with recorded_logits() as logits:
            answers(engine, job(PROMPTS, members=MEMBERS, sigma=0.1, max_tokens=1))
            engine.apply(Update(3, (Term(3, 0, 0.3),)))
            answers(engine, job(PROMPTS, members=(UNPERTURBED,), sigma=0.1, max_tokens=1))
        seen.append([torch.stack(rows) for _, rows in sorted(logits.items())])
    for own_rows, library_rows in zip(*seen, strict=True):
        torch.testing.assert_close(own_rows, library_rows, atol=0.06, rtol=0.02)
    assert (seen[1][0][0] - seen[1][3][0]).abs().max() > 0.3


@on_cpu
@pytest.mark.parametrize(
    ("family", "perturbation"),
    [
        ("llama", "lowrank"),
        ("llama", "flipout"),
        ("qwen2", "lowrank"),
        ("qwen2", "gaussian"),
        ("gpt2", "gaussian"),
        ("gpt2", "flipout"),
    ],
)
def test_weights_multiplied_as_they_lie_give_the_logits_of_copied_ones(
    family: str, perturbation: str, folders: Callable[[str], Path]
) -> None:
    """In float32 the type of the current weights is the model's with either ``weights_dtype``."""
    seen: list[list[torch.Tensor]] = []
    for weights_dtype in ("model", "float32"):
        options = {"perturbation": perturbation, "weights_dtype": weights_dtype}
        engine = load_engine(folders(family), noise=options, dtype="float32", products="fma32")
        with recorded_logits() as logits:
            answers(engine, job(PROMPTS, members=MEMBERS, sigma=0.1, max_tokens=2))
        seen.append([torch.stack(rows) for _, rows in sorted(logits.items())])
    assert all(map(torch.equal, *seen))


def test_lowrank_with_nothing_that_it_perturbs_is_refused(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="leaves no weight of a linear layer"):
        load_engine(folders("llama"), noise={"trainable": ("*norm*",)})


@on_cpu
def test_a_weights_folder_that_is_a_file_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"is a file\. Give a folder"):
        load_engine(folders("llama"), weights_folder=str(tmp_path / "file"))


def test_a_closed_engine_lets_go_of_its_model_and_loads_again(folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders("llama"))
    before, name = engine.fingerprint(), engine.attention.name
    engine.close()
    engine.close()
    assert name not in AttentionInterface._global_mapping
    engine.load()
    assert engine.fingerprint() == before
