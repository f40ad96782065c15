"""That vLLM computes with the weights that seedtune writes, all of them, and with nothing older; with controls."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM", exc_type=ImportError)

from models import answers, job, load_engine, text_prompts
from seedtune.config.config import Config
from seedtune.engines.transformers.members.weight_format import as_tensor, as_weights
from seedtune.engines.vllm import compat, engine_args
from seedtune.engines.vllm.engine import VllmEngine
from seedtune.engines.vllm.engine_core import EngineCore
from seedtune.engines.vllm.lora import LoraMaker
from seedtune.engines.vllm.worker_state import WorkerState
from seedtune.errors import ConfigError, DataError, EngineError, MissingExtraError, StorageError
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Member, Prompt, Term, Update
from serving import SMALL, end_all, save_served, serve

GAUSSIAN, LOWRANK = {"perturbation": "gaussian"}, {"perturbation": "lowrank"}
MEMBER, OTHER = Member(1, 0, 1), Member(1, 4, -1)
GIVEN = (Prompt(0, "Hello there", answers=("-0.25",)), Prompt(1, "x", answers=("y",)))
UPDATE = Update(1, (Term(1, 0, 0.05),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    yield cache(lambda family: save_served(family, tmp_path_factory.mktemp(family)))
    end_all()


@pytest.fixture(scope="module")
def served(folder: Callable[[str], Path]) -> Callable[[str, str], VllmEngine]:
    """Engines that no test moves."""
    return cache(lambda family, mode: serve(folder(family), {"perturbation": mode}))


def worker_of(engine: VllmEngine) -> Any:
    """The worker, which of an engine of one rank lives in this process."""
    return engine._core._core.model_executor.driver_worker.worker


def state_of(engine: VllmEngine) -> WorkerState:
    found: WorkerState = worker_of(engine)._seedtune
    return found


def said(engine: Any, member: Member = UNPERTURBED) -> list[float]:
    """Log-probabilities of reference answers."""
    listed = engine.likelihoods([job(GIVEN, members=[member], sigma=0.1)])
    return [p for one in sorted(listed, key=lambda one: one.prompt) for p in one.logprobs]


def kinds_of(names: Any) -> dict[str, list[str]]:
    """The tensors of each kind: their names with numbers replaced."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return kinds


# ------------------------------------------------------------------------------------------- every kind of tensor


@pytest.mark.parametrize(
    ("family", "mode"),
    [*((f, "gaussian") for f in ("llama-untied", "llama-one-head", "qwen3", "gemma3")), ("qwen2", "flipout")],
)
def test_every_kind_of_tensor_is_read_where_it_is_written(family: str, mode: str, served: Any, folder: Any) -> None:
    """Each kind perturbed alone gives what transformers gives with it alone perturbed, and the unperturbed model
    without it."""
    ours = served(family, mode)
    state, unperturbed = state_of(ours), said(ours)
    for kind, names in kinds_of(state.shapes).items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state, "_live", {name: state._live[name] for name in names})
            found = said(ours, MEMBER)
            ours.logprobs(GIVEN, [[5], [5]])  # the unperturbed model again
        theirs = load_engine(folder(family), noise={"perturbation": mode, "trainable": (kind,)})
        assert found == pytest.approx(said(theirs, MEMBER), abs=1e-4), kind
        assert found != pytest.approx(unperturbed, abs=1e-3), kind
        assert said(ours) == unperturbed, kind


def test_a_stock_worker_that_packs_once_would_fail_that_test(served: Any) -> None:
    """The control: without packing again, what is written to linear layers is not read."""
    ours = served("llama-untied", "gaussian")
    state, unperturbed = state_of(ours), said(ours)
    linear = [name for name in state.shapes if name.endswith("_proj.weight") or name == "lm_head.weight"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "_live", {name: state._live[name] for name in linear})
        patch.setattr(state, "_packers", [])
        assert said(ours, MEMBER) == unperturbed
        assert said(ours) == unperturbed


@pytest.mark.parametrize("family", ["llama-untied", "qwen2", "gemma3"])
def test_every_kind_of_linear_layer_reads_its_adapter(family: str, served: Any, folder: Any) -> None:
    ours = served(family, "lowrank")
    state, unperturbed = state_of(ours), said(ours)
    for number, (kind, names) in enumerate(kinds_of(state.shapes).items()):
        some = state.weights.part({name: state.weights.tensors[name] for name in names})
        compat.make_loras(worker_of(ours), LoraMaker(some, state.lora._dtype).make)
        member = Member(1, 50 + number, 1)
        theirs = load_engine(folder(family), noise={**LOWRANK, "trainable": (kind,)})
        assert said(ours, member) == pytest.approx(said(theirs, member), abs=1e-4), kind
        assert said(ours, member) != pytest.approx(unperturbed, abs=1e-3), kind
    compat.make_loras(worker_of(ours), state.lora.make)
    assert said(ours) == unperturbed


def test_the_unperturbed_model_beside_adapters_is_itself_whichever_fill_the_slots(served: Any, folder: Any) -> None:
    """On the CPU vLLM gives requests without an adapter that of the last slot."""
    few = serve(folder("llama"), LOWRANK, max_loras=1)
    work = job(text_prompts("Hello there", "x"), members=[MEMBER, UNPERTURBED, OTHER, Member(3, 3, 1)], sigma=0.3)
    found = answers(few, work)
    assert found == answers(load_engine(folder("llama")), work)


# ------------------------------------------------------------------------------------------- nothing older

LONG = "The quick brown fox jumps over the lazy dog twice"


def test_cached_beginnings_of_another_members_prompts_are_not_taken(served: Any, folder: Any) -> None:
    prompts = text_prompts(*(LONG + end for end in ("a", "b", "c")))
    ours, theirs = served("llama", "gaussian"), load_engine(folder("llama"), noise=GAUSSIAN)
    work = [
        job(prompts, members=[member], sigma=0.2, max_tokens=8) for member in (UNPERTURBED, MEMBER, OTHER, UNPERTURBED)
    ]
    expected = [answers(theirs, one) for one in work]
    assert [answers(ours, one) for one in work] == expected
    with pytest.MonkeyPatch.context() as patch:  # the control: with the cache kept, answers are of older weights
        patch.setattr(ours._core, "forget_prefixes", lambda: None)
        assert [answers(ours, one) for one in work] != expected
    ours._core.forget_prefixes()
    assert [answers(ours, one) for one in work] == expected


def test_an_update_forgets_cached_beginnings_of_adapters_too(folder: Any) -> None:
    prompts = text_prompts(*(LONG + end for end in ("a", "b")))
    ours, theirs = serve(folder("llama"), LOWRANK), load_engine(folder("llama"))
    work = job(prompts, members=[UNPERTURBED, MEMBER], max_tokens=8)
    for update in (UPDATE, Update(2, (Term(2, 1, -0.2),))):
        assert answers(ours, work) == answers(theirs, work)
        ours.apply(update)
        theirs.apply(update)
    assert answers(ours, work) == answers(theirs, work)


# ------------------------------------------------------------------------------------------- the state


def test_becoming_what_it_is_writes_nothing_and_an_update_makes_it_stale(served: Any) -> None:
    ours = served("llama", "gaussian")
    assert state_of(ours).set_member(MEMBER, 0.1) is True
    assert state_of(ours).set_member(MEMBER, 0.1) is False
    assert state_of(ours).set_member(MEMBER, 0.2) is True
    before = ours.fingerprint()
    ours._call("apply")
    assert state_of(ours).set_member(MEMBER, 0.2) is True
    assert state_of(ours).set_member(UNPERTURBED, 0.7) is True
    assert state_of(ours).set_member(UNPERTURBED, 0.0) is False
    ours._call("apply")
    assert state_of(ours).set_member(UNPERTURBED, 0.0) is True
    assert ours.fingerprint() == before


def test_a_write_that_was_interrupted_is_written_again(served: Any, folder: Any) -> None:
    ours, theirs = served("llama", "gaussian"), load_engine(folder("llama"), noise=GAUSSIAN)
    state, broken = state_of(ours), list(state_of(ours)._live)[3]

    def write(name: str, *rest: Any) -> None:
        if name == broken:
            raise EngineError("interrupted")
        original(name, *rest)

    original = state.weights.perturb
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state.weights, "perturb", write)
        with pytest.raises(EngineError, match="interrupted"):
            said(ours, MEMBER)
    for member in (UNPERTURBED, MEMBER):
        assert said(ours, member) == pytest.approx(said(theirs, member), abs=1e-4)


def test_adapters_of_a_lowrank_run_are_not_written_as_weights(served: Any) -> None:
    with pytest.raises(EngineError, match="is an adapter"):
        served("llama", "lowrank")._call("set_member", MEMBER, 0.1)


def test_other_tensors_need_another_vllm(folder: Any) -> None:
    ours = serve(folder("llama"), GAUSSIAN)
    fresh = said(ours)
    ours.apply(UPDATE)
    assert said(ours) != fresh
    ours._base_model = replace(ours._loaded, shapes={"model.norm.weight": ours._loaded.shapes["model.norm.weight"]})
    with pytest.raises(EngineError, match="has trained other tensors"):
        ours._make_states(ours._base_model)
    ours.load()
    assert said(ours) == fresh


# ------------------------------------------------------------------------------------------- what a user can do wrong


def broken(folder: Path, noise: dict[str, Any] = GAUSSIAN, **settings: Any) -> VllmEngine:
    return VllmEngine(Config(model=str(folder), vllm={**SMALL, **settings}), noise=Noise(7, **noise))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"block_sise": 32}, r"unknown setting 'vllm.block_sise'.* Did you mean 'block_size'\?"),
        ({"quantization": "fp8"}, "vllm.quantization='fp8' cannot be given: members are written as plain weights"),
        ({"enable_lora": True}, "perturbation=lowrank needs adapters"),
    ],
)
def test_options_that_vllm_or_seedtune_does_not_take_are_named(folder: Any, option: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        broken(folder("llama"), **option)


def test_a_compiled_model_on_a_cpu_and_sampling_of_vllms_own_are_refused(folder: Any) -> None:
    for name, value, message in (
        ("enforce_eager", False, r"vllm\.enforce_eager=False: on a CPU"),
        ("override_generation_config", {"temperature": 0.9}, "sampling follows the run's own settings"),
    ):
        with pytest.raises(ConfigError, match=message):
            VllmEngine(Config(model=str(folder("llama")), vllm={name: value}), noise=Noise(7))


def test_a_parameter_that_vllm_keeps_wider_is_rounded_as_the_models_precision_is(served: Any, folder: Any) -> None:
    """As the CPU build keeps biases of small 16-bit layers on processors with AMX."""
    ours = serve(folder("llama-one-head"), GAUSSIAN, dtype="bfloat16")
    state = state_of(ours)
    name = "model.layers.0.self_attn.o_proj.bias"
    plain = as_tensor(state._live[name])
    wide = torch.zeros(plain.shape, dtype=torch.float32)
    state.set_member(MEMBER, 0.1)
    expected = plain.clone()
    state._live[name] = as_weights(wide)
    state.apply()
    state.set_member(MEMBER, 0.1)
    assert torch.equal(wide.to(torch.bfloat16), expected)
    assert torch.equal(wide.to(torch.bfloat16).float(), wide)


def test_a_listener_whose_requests_another_call_took_back_is_told(served: Any) -> None:
    ours = served("llama", "gaussian")
    left = ours.evaluate([job(text_prompts(*"abcdef"), samples=4, temperature=1.0, max_tokens=30, ignore_eos=True)])
    next(left)
    ours.logprobs(GIVEN, [[5], [5]])
    with pytest.raises(EngineError, match="another call of this engine took these requests back"):
        list(left)


def test_weights_that_may_have_moved_on_some_ranks_only_are_of_no_use(folder: Any) -> None:
    ours = serve(folder("llama"), GAUSSIAN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_of(ours).weights, "apply", lambda *_: (_ for _ in ()).throw(StorageError("gone.")))
        with pytest.raises(StorageError, match="gone"):
            ours.apply(UPDATE)
    with pytest.raises(EngineError, match=r"vLLM stopped while the weights were updated: gone\."):
        ours.fingerprint()


def test_options_of_ours_are_options_of_vllm() -> None:
    assert set(engine_args.OURS) - {"products"} <= compat.option_names()  # a setting of ours that used to stand there


def test_a_version_that_was_not_tested_is_refused_and_a_missing_one_explained(folder: Any) -> None:
    import vllm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "__version__", "0.7.3")
        with pytest.raises(ConfigError, match=r"with vLLM 0\.7\.3: .*for versions .*0\.32 only\. .*'vllm==0\.32"):
            broken(folder("llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", None)
        patch.setattr(compat.importlib.util, "find_spec", lambda name: object())
        with pytest.raises(ConfigError, match="is installed, but does not import"):
            broken(folder("llama"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compat.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"pip install 'vllm==0\.32\.\*'$"):
            broken(folder("llama"))


def test_little_memory_makes_completions_wait_not_fail(folder: Any) -> None:
    """Eight blocks of 32 hold four completions of the twelve."""
    narrow = serve(folder("llama"), GAUSSIAN, num_gpu_blocks_override=9)
    work = job(text_prompts(*"abc"), samples=4, temperature=1.0, ignore_eos=True, max_tokens=40)
    assert answers(narrow, work) == answers(load_engine(folder("llama"), noise=GAUSSIAN), work)


def test_a_prompt_that_does_not_fit_is_named(served: Any, folder: Any) -> None:
    with pytest.raises(DataError, match="prompt 0 has 60 tokens; with max_completion_length=8"):
        answers(served("llama", "gaussian"), job(text_prompts("a" * 60)))
    short = serve(folder("llama"), GAUSSIAN, max_model_len=32)
    assert short.tokenizer.context_length == 32
    with pytest.raises(DataError, match="the model's context of 32"):
        answers(short, job(text_prompts("a" * 30)))


def interrupt(ours: Any, work: Any, owner: object, name: str) -> None:
    """Ask for answers, with Ctrl-C pressed when `owner.name` is called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            answers(ours, work)


def test_after_an_interruption_in_a_step_only_loading_again_helps(folder: Any) -> None:
    ours, work = serve(folder("llama"), GAUSSIAN), job(text_prompts("Hello there"))
    before = answers(ours, work)

    interrupt(ours, work, ours._core._core, "step")
    with pytest.raises(EngineError, match=r"vLLM stopped while it generated: it was interrupted\. The ledger"):
        answers(ours, work)
    ours.load()
    assert answers(ours, work) == before


def test_a_cache_that_an_interruption_left_is_emptied_by_the_next_call(served: Any) -> None:
    ours = served("llama", "gaussian")
    work = job(text_prompts(LONG), members=[MEMBER], sigma=0.2, max_tokens=8)
    expected = answers(ours, work)
    answers(ours, job(text_prompts(LONG), members=[UNPERTURBED], max_tokens=8))

    interrupt(ours, work, ours._core, "forget_prefixes")
    assert answers(ours, work) == expected


@pytest.mark.parametrize("name", ["VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_USE_V2_MODEL_RUNNER"])
def test_an_environment_that_the_engine_cannot_work_in_is_named(folder: Any, monkeypatch: Any, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=f"{name}=1 is set, and engine=vllm needs {name}=0"):
        broken(folder("llama"))


def test_an_error_inside_a_worker_ends_the_run_and_loading_again_mends_it(folder: Any) -> None:
    ours, work = serve(folder("llama"), GAUSSIAN), job(text_prompts("Hello there"))
    ours.apply(UPDATE)
    before, runner = answers(ours, work), worker_of(ours).model_runner
    with pytest.MonkeyPatch.context() as patch:

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("a bad day\nfor kernels")

        patch.setattr(runner.model, "forward", fail)
        with pytest.raises(EngineError, match=r"vLLM stopped while it generated: a bad day for kernels\. The ledger"):
            answers(ours, work)
    for call in (ours.fingerprint, lambda: answers(ours, work)):
        with pytest.raises(EngineError, match="a bad day"):
            call()
    assert ours._core.failed
    ours.load()
    ours.apply(UPDATE)
    assert answers(ours, work) == before
    assert isinstance(ours._engine_core, EngineCore)
