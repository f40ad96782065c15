"""The path of devices without compiled kernels, walked on the CPU: a batched member is the materialised model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

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
from seedtune.engines.transformers.decoding import decode_round, decoder, slot_attention
from seedtune.engines.transformers.decoding.decode_round import DecodeRound
from seedtune.engines.transformers.decoding.decoder import Decoder
from seedtune.engines.transformers.decoding.slot_attention import SlotAttention
from seedtune.engines.transformers.decoding.slot_cache import SlotCache
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.transformers.members import population_linear
from seedtune.engines.transformers.members.weight_format import WeightFormat
from seedtune.errors import ConfigError
from seedtune.types import UNPERTURBED, Job, Member, Term, Update

MEMBERS = (Member(3, 0, 1), Member(3, 0, -1), UNPERTURBED, Member(3, 5, 1), Member(2, 9, -1))
OTHERS = (Member(4, 1, 1), Member(4, 2, -1), UNPERTURBED, Member(4, 3, 1), Member(4, 4, -1))
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


def test_a_round_of_decode_steps_copies_twice_to_the_device(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokens with their positions and draws, and every row's member: as many copies as a model has no layers."""
    copies: list[int] = []
    original = device.uploaded

    def counted(*arguments: Any) -> Any:
        copies[-1] += 1
        return original(*arguments)

    for module in (population_linear, slot_attention, decode_round):
        monkeypatch.setattr(module, "uploaded", counted)
    around = Decoder._round

    def counting(*arguments: Any) -> None:
        copies.append(0)
        around(*arguments)

    monkeypatch.setattr(Decoder, "_round", counting)
    copies.append(0)
    engine = load_engine(folders("llama"), products="library")
    answers(engine, job(PROMPTS, members=MEMBERS, max_tokens=20, ignore_eos=True))
    assert copies[1:] == [2, 2, 2]


# ------------------------------------------------------------------------- rounds of steps


class Moves:
    """Counts rows that move to another slot."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, original = 0, SlotCache.move

        def counted(cache: SlotCache, sources: list[int], *others: Any) -> None:
            self.count += len(sources)
            original(cache, sources, *others)

        monkeypatch.setattr(SlotCache, "move", counted)


def by_single_steps(engine: TransformersEngine, work: Job) -> Any:
    """The answers if the host looks at every step, with no more rows than there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "STEPS", 1)
        patch.setattr(decoder, "bucket", lambda rows, most: rows)
        return answers(engine, work)


@pytest.mark.parametrize(("family", "temperature"), [*((family, 3.0) for family in FAMILIES), ("llama", 0.0)])
def test_rounds_give_the_answers_of_a_look_at_every_step(
    family: str, temperature: float, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a stop string begins in one round and ends in the next, and rows move to other slots."""
    engine = load_engine(folders(family), products="library", max_rows=7, rank=2)
    options: dict[str, Any] = {"members": MEMBERS, "max_tokens": 21, "temperature": temperature, "ignore_eos": True}
    free = answers(engine, job(PROMPTS, **options))
    assert free == by_single_steps(engine, job(PROMPTS, **options))
    # a prefill gives the first token, a round the next eight
    ends = {engine.tokenizer.decode(list(rollout.token_ids[8:10])) for rollout in free.values()}
    stop = tuple(sorted(end for end in ends if len(end) == 2 and end.isprintable())[:6])
    moves = Moves(monkeypatch)
    stopped = answers(engine, job(PROMPTS, stop=stop, **options))
    assert stopped == by_single_steps(engine, job(PROMPTS, stop=stop, **options))
    if temperature:  # greedy answers of random weights repeat themselves
        assert any(len(rollout.token_ids) == 10 and rollout.finish == "stop" for rollout in stopped.values())
        assert moves.count


@pytest.mark.parametrize("mode", ["gaussian", "flipout"])
def test_rounds_of_other_members_and_of_limits_of_their_own(mode: str, folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders("llama"), products="library", max_rows=3, **MODES[mode])
    prompts = [replace(prompt, max_tokens=limit) for prompt, limit in zip(PROMPTS, (1, 9, 12, 30), strict=True)]
    work = job(prompts, members=MEMBERS, max_tokens=40, temperature=0.7, top_p=0.8)
    assert answers(engine, work) == by_single_steps(engine, work)


def test_a_row_that_ends_at_the_models_last_position_goes_no_further(tmp_path: Path) -> None:
    """Steps after its end would ask a table of positions for one that it does not have."""
    engine = load_engine(save_family("gpt2", tmp_path), products="library")
    context = engine.tokenizer.context_length
    room = [context - len(ids) for ids in engine.tokenizer.encode(PROMPTS)]
    prompts = [
        replace(p, max_tokens=most if i % 2 else 3) for i, (p, most) in enumerate(zip(PROMPTS, room, strict=True))
    ]
    work = job(prompts, max_tokens=context, ignore_eos=True)
    found = answers(engine, work)
    assert max(len(rollout.token_ids) + rollout.prompt_tokens for rollout in found.values()) == context
    assert found == by_single_steps(engine, work)


def test_steps_fill_buckets_of_few_sizes() -> None:
    assert [decode_round.bucket(rows, 200) for rows in (1, 3, 64, 65, 130, 199)] == [1, 4, 64, 96, 192, 200]
    assert decode_round.bucket(3000, 4096) == 4096
    assert [decode_round.read_positions(needed, 600) for needed in (1, 128, 129, 590)] == [128, 128, 256, 600]


class FakeGraph:
    """Stands for a CUDA graph: replays the step that was recorded."""

    def __init__(self) -> None:
        self.replay: Callable[[], None] = lambda: None


def test_steps_are_recorded_when_their_shape_comes_again_and_freed_with_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, recorded = list[str](), decode_round.RecordedSteps()

    @contextmanager
    def recording(graph: FakeGraph) -> Iterator[None]:
        before = len(done)
        yield
        name = done[before]
        del done[before:]  # recording computes nothing
        graph.replay = lambda: done.append(f"replayed {name}")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    for shape, weights in (("a", 1), ("a", 1), ("b", 1), ("a", 1), ("a", 2), ("a", 2)):
        recorded.run(lambda shape=shape: done.append(shape), shape=shape, weights=weights)
    assert done == ["a", "replayed a", "b", "replayed a", "a", "replayed a"]


def test_a_step_that_cannot_be_recorded_is_run_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    done, recorded = list[str](), decode_round.RecordedSteps()

    def refused(graph: FakeGraph) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", refused)
    for shape in ("a", "b"):
        recorded.run(lambda shape=shape: done.append(shape), shape=shape, weights=1)
    with pytest.warns(UserWarning, match="not recorded as CUDA graphs, which is slower: operation not"):
        recorded.run(lambda: done.append("a again"), shape="a", weights=1)
    recorded.run(lambda: done.append("b again"), shape="b", weights=1)  # a warning here would be an error
    assert done == ["a", "b", "a again", "b again"]


class Replayed(TorchDispatchMode):
    """Records operations with their tensors and repeats them on the same memory, as a CUDA graph does.

    Recording has done the work of the first replay.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.replays = list[tuple[Any, ...]](), 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        made: dict[int, Any] = {}

        def now(x: Any) -> Any:
            return made.get(id(x), x)

        for function, args, kwargs, before in self.calls if self.replays > 1 else ():
            after = function(*tree_map(now, args), **tree_map(now, kwargs))
            made |= {id(old): new for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "llama gaussian"])
def test_recorded_steps_give_the_answers_of_steps_as_they_are(
    family: str, folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step needs is in the same memory in every round of its shape; nothing comes from the host meanwhile."""
    family, _, how = family.partition(" ")
    engine = load_engine(
        folders(family), products="library", max_rows=6, **MODES["gaussian" if how == "gaussian" else "lowrank"]
    )
    options: dict[str, Any] = {"max_tokens": 18, "temperature": 1.0, "top_p": 0.9}
    works = [job(PROMPTS, members=members, **options) for members in (MEMBERS, OTHERS)]
    expected = [answers(engine, work) for work in works]
    graphs: list[Replayed] = []

    def graph() -> Replayed:
        graphs.append(Replayed())
        return graphs[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    on = property(lambda state: True, lambda state, value: None)
    monkeypatch.setattr(DecodeRound, "recordable", on, raising=False)
    engine.attention.cache = SlotCache(1, 1)
    assert [answers(engine, work) for work in works] == expected
    assert max(graph.replays for graph in graphs) > 7
