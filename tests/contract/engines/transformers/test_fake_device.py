"""The path of GPUs on tensors without contents: none stays on the CPU, and the host reads nothing within a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import FAMILIES, load_engine, save_family
from seedtune.engines.transformers import device
from seedtune.engines.transformers.decoding import sampling
from seedtune.engines.transformers.decoding.decode_round import STEPS, DecodeRound
from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack
from seedtune.engines.transformers.decoding.slot_attention import Decode
from seedtune.engines.transformers.decoding.slot_cache import SlotCache
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.types import UNPERTURBED, Member, Sampling

THERE = torch.device("meta")
"""Stands for a GPU: mixing its tensors with the CPU's is an error."""
MEMBERS = (Member(3, 0, 1), UNPERTURBED, Member(2, 9, -1))
MODES: dict[str, dict[str, Any]] = {
    "lowrank": {"rank": 2},
    "gaussian": {"noise": {"perturbation": "gaussian"}},
    "flipout": {"noise": {"perturbation": "flipout", "shared_noise": 2}},
}
ROUTED = ("mixtral", "deepseek-v3", "qwen2-moe")
"""Families whose own code asks the host which experts have tokens."""


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "KERNELS", False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda family: save_family(family, tmp_path_factory.mktemp(family)))


class Moved:
    """Replaces every tensor that objects hold, at any depth, by one without contents on the device."""

    def __init__(self) -> None:
        self._seen: dict[int, Any] = {}
        self._fakes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def tensor(self, x: torch.Tensor) -> torch.Tensor:
        if id(x) not in self._fakes:
            self._fakes[id(x)] = x, torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=THERE)
        return self._fakes[id(x)][1]

    def of(self, value: Any) -> Any:
        if isinstance(value, nn.Parameter):
            return nn.Parameter(self.tensor(value), requires_grad=False)
        if isinstance(value, torch.Tensor):
            return self.tensor(value)
        if isinstance(value, dict):
            for key in value:
                value[key] = self.of(value[key])
        elif isinstance(value, list | tuple):
            moved = [self.of(part) for part in value]
            if isinstance(value, list):
                value[:] = moved
            return value if isinstance(value, list) or hasattr(value, "_fields") else type(value)(moved)
        elif isinstance(value, nn.Module) or type(value).__module__.startswith("seedtune.engines"):
            self._inside(value)
        return value

    def _inside(self, holder: Any) -> None:
        if id(holder) in self._seen:
            return
        self._seen[id(holder)] = holder
        names = {*getattr(holder, "__dict__", {}), *getattr(type(holder), "__slots__", ())}
        for name in names:
            object.__setattr__(holder, name, self.of(getattr(holder, name)))


class OnDevice(TorchDispatchMode):
    """Allows no operation on a tensor of the CPU, also none that would copy it; Python's numbers have no dimension."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            assert not isinstance(x, torch.Tensor) or x.device == THERE or x.dim() == 0, function
        return function(*args, **(kwargs or {}))


def fake_from_numpy(array: np.ndarray) -> torch.Tensor:
    kinds = {"int32": torch.int32, "int64": torch.int64, "float32": torch.float32, "bool": torch.bool}
    return torch.empty(array.shape, dtype=kinds[array.dtype.name])


@pytest.fixture
def _fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "from_numpy", fake_from_numpy)
    with FakeTensorMode(allow_non_fake_inputs=False), torch.no_grad():
        yield


def placed(engine: TransformersEngine) -> None:
    """Move all that a pass reads."""
    moved = Moved()
    moved.of(engine.model)
    moved.of(engine.perturbation)
    object.__setattr__(engine.perturbation._place, "device", THERE)
    engine.attention.cache = SlotCache(4, 40)


PLAIN = [family for family in FAMILIES if family not in ROUTED]


@pytest.mark.parametrize(
    ("family", "mode"),
    [*((family, "lowrank") for family in PLAIN), *product(("llama", "gpt2"), ("gaussian", "flipout"))],
)
def test_a_pass_stays_on_the_device_and_the_host_reads_nothing(
    family: str, mode: str, folders: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    engine = load_engine(folders(family), products="library", **MODES[mode])
    engine.perturbation.set_members(MEMBERS, [0] if mode == "gaussian" else range(3), sigma=0.01)
    request.getfixturevalue("_fake")
    placed(engine)
    members, params = np.array([0, 1, 2]), Sampling(8, temperature=0.7, top_p=0.9)
    pack = PrefixPack(0)
    for row, ids in enumerate(((3, 4, 5), (6, 7), (3, 4, 9))):
        pack.add(row, ids, [])
    of_tokens = np.array(pack.members)
    engine.perturbation.set_rows(of_tokens, of_tokens[pack.last()])
    logits = engine.attention.prefill(engine.model, pack, np.array(pack.last()))
    assert logits.device == THERE
    engine.perturbation.set_rows(members, steady=mode != "flipout")
    state = DecodeRound(3, THERE)
    state.start([1, 2, 3], [3, 2, 3], [np.zeros(20)] * 3)
    for step in range(STEPS):
        # the rows of flipout's shared noises are sorted by the host, once a round
        with OnDevice() if step or mode != "flipout" else nullcontext():
            engine.perturbation.begin_step()
            logits = engine.attention.run(engine.model, state.tokens, state.places, Decode(state.places, 16), None)
            for rule in (params, Sampling(8)):
                chosen = sampling.choose(logits, rule, state.point())
            state.append(chosen, 39)
    assert state.written.device == state.places.device == logits.device == THERE
