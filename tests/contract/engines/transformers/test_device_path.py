"""The path of devices without compiled kernels, walked on the CPU: a batched member is the materialised model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

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
from seedtune.engines.transformers.decoding import slot_attention
from seedtune.engines.transformers.decoding.decoder import Decoder
from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.engines.transformers.members import population_linear
from seedtune.engines.transformers.members.weight_format import WeightFormat
from seedtune.errors import ConfigError
from seedtune.types import UNPERTURBED, Member, Term, Update

MEMBERS = (Member(3, 0, 1), Member(3, 0, -1), UNPERTURBED, Member(3, 5, 1), Member(2, 9, -1))
PROMPTS = text_prompts("Hello there", "x", "The quick brown fox jumps", "Hello therein")
MODES: dict[str, dict[str, Any]] = {
    "lowrank": {"rank": 2},
    "gaussian": {"noise": {"perturbation": "gaussian"}},
    "flipout": {"noise": {"perturbation": "flipout", "shared_noise": 2}},
}


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "KERNELS", False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: save_family(family, tmp_path_factory.mktemp(family)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_batched_members_equal_materialised_models(family: str, mode: str, folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders(family), products="library", **MODES[mode])
    assert not engine.fused
    assert engine.attention.cache.compiled
    assert_members_are_materialised_models(engine, folders(family), MEMBERS, PROMPTS, sigma=0.05, new=6)
    assert all(layer.arrays is None for layer in engine.attention.cache.layers)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_gaussian_members_drawn_at_home_are_materialised_models(
    family: str, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for an Apple GPU, which has no kernels for noise: exact weights and noise are the CPU's."""
    monkeypatch.setattr(WeightFormat, "staged", True)
    engine = load_engine(folders(family), products="library", **MODES["gaussian"])
    assert all(isinstance(live, torch.Tensor) for live in engine.perturbation._live.values())
    assert_members_are_materialised_models(engine, folders(family), MEMBERS, PROMPTS, sigma=0.05, new=6)
    plain = load_engine(folders(family), products="library", **MODES["gaussian"])
    update = Update(1, (Term(1, 0, 0.01), Term(0, 3, -0.02)))
    for each in (engine, plain):
        each.apply(update)
    assert engine.fingerprint() == plain.fingerprint()
    assert answers(engine, job(PROMPTS, members=MEMBERS)) == answers(plain, job(PROMPTS, members=MEMBERS))


def test_exact_weights_are_where_there_are_kernels() -> None:
    homes = {name: device.home_of(torch.device(name)).type for name in ("cpu", "cuda", "mps")}
    assert homes == {"cpu": "cpu", "cuda": "cuda", "mps": "cpu"}


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is an Apple GPU")
def test_a_missing_apple_gpu_is_named(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"device=.mps., but torch sees no Apple GPU\. Use device=cpu"):
        load_engine(folders("llama"), device="mps")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_more_members_than_further_inputs_gather_their_factors(
    family: str, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(folders(family), products="library", rank=2)
    work = job(PROMPTS, members=MEMBERS, max_tokens=6, temperature=1.0)
    further = answers(engine, work)
    monkeypatch.setattr(population_linear, "FURTHER_INPUTS", 5)  # three pairs of rank two
    assert answers(engine, work) == further


def test_large_activations_in_float16_do_not_overflow_before_they_are_scaled() -> None:
    state = population_linear.RowState()
    state.set(np.zeros(1, np.int32), np.full(1, 1e-3, np.float32))
    like = {"dtype": torch.float16}
    factors = population_linear.Factors(torch.ones(1, 1, 2, **like), torch.ones(1, 1, 1, 100, **like), np.array([2]))
    y = torch.zeros(1, 2, **like)
    factors.add(y, torch.full((1, 100), 1000.0, **like), state)  # the dot is 100,000, beyond float16
    assert y.tolist() == [[100.0, 100.0]]


class Launches(TorchDispatchMode):
    """Counts operations that compute, and reads of a tensor's value by the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.reads = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.reads += name in ("_local_scalar_dense", "nonzero", "equal")
        self.count += not (function.is_view or name in ("_unsafe_view", "empty", "empty_like", "new_empty"))
        return function(*args, **(kwargs or {}))


def step(layers: int, mode: str, folder: Path) -> Launches:
    """The launches of the last decode step of a Llama."""
    config = FAMILIES["llama"]()
    config.num_hidden_layers = layers
    engine = load_engine(save_model(config, folder), products="library", **MODES[mode])
    found = []
    with pytest.MonkeyPatch.context() as patch:
        run = SlotAttention.run

        def counted(*arguments: Any, **options: Any) -> torch.Tensor:
            with Launches() as launches:
                logits = run(*arguments, **options)
            found.append(launches)
            return logits

        patch.setattr(SlotAttention, "run", counted)
        answers(engine, job(PROMPTS, members=MEMBERS, max_tokens=3, ignore_eos=True))
    return found[-1]


MOST = {"lowrank": 50, "gaussian": 40, "flipout": 40 + 3 * 40}
"""Launches of a layer; these members of flipout share three noises."""


@pytest.mark.parametrize("mode", MODES)
def test_a_decode_step_launches_little_and_the_host_reads_nothing(mode: str, tmp_path: Path) -> None:
    two, four = step(2, mode, tmp_path / "two"), step(4, mode, tmp_path / "four")
    assert two.reads == four.reads == 0
    assert (four.count - two.count) / 2 <= MOST[mode]


def test_a_decode_step_copies_twice_to_the_device(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens with their positions, and every row's member: as many copies as a model has no layers."""
    copies: list[int] = []
    original = device.uploaded

    def counted(*arguments: Any) -> Any:
        copies[-1] += 1
        return original(*arguments)

    for module in (population_linear, slot_attention):
        monkeypatch.setattr(module, "uploaded", counted)
    run = Decoder._step

    def stepped(*arguments: Any) -> None:
        copies.append(0)
        run(*arguments)

    monkeypatch.setattr(Decoder, "_step", stepped)
    copies.append(0)
    engine = load_engine(folders("llama"), products="library")
    answers(engine, job(PROMPTS, members=MEMBERS, max_tokens=5, ignore_eos=True))
    assert len(copies) == 5
    assert set(copies[1:]) == {2}
