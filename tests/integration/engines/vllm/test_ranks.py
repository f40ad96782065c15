"""The vLLM engine on two ranks, each a process of its own: one model, as on one rank and in transformers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM", exc_type=ImportError)

from models import answers, job, load_engine, save_model, text_prompts
from seedtune.config.config import Config
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.vllm.engine import VllmEngine
from seedtune.errors import EngineError
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Decay, Member, Prompt, Term, Update
from serving import SERVED, SMALL, save_served
from vllm_ranks import Ranks, spin_less

GAUSSIAN, LOWRANK = {"perturbation": "gaussian"}, {"perturbation": "lowrank"}
MEMBERS = (Member(1, 0, 1), Member(1, 0, -1), Member(1, 4, 1), UNPERTURBED)
PROMPTS = text_prompts("Hello there", "x", "The quick brown fox jumps")
GIVEN = (Prompt(0, "Hello there", answers=("-0.25", "y")),)
UPDATES = [
    Update(g, (Term(g, 0, 0.01 * g), Term(g, 4, -0.02), Term(0, 7, 0.01)), Decay(l2=0.1) if g == 3 else None)
    for g in range(1, 5)
]
DIVIDED = {
    "qwen2-untied-gaussian": ("qwen2-untied", GAUSSIAN),
    "qwen2-untied-lowrank": ("qwen2-untied", LOWRANK),
    "gemma3-one-head-gaussian": ("gemma3-one-head", GAUSSIAN),
    "one-head-lowrank": ("llama-one-head", LOWRANK),
    "gaussian-model": ("gemma3", {**GAUSSIAN, "weights_dtype": "model", "subspaces": 2}),
}
"""Every sort of tensor on two ranks: with and without biases, norms of heads, a head that is not the embedding, one
head of keys that both ranks have; adapters, which are of linear layers only, of divided heads of keys and of that one
head."""


def save(family: str, folder: Path, **options: Any) -> Path:
    if family in SERVED:
        return save_served(family, folder, **options)
    config = SERVED["gemma3"]()
    config.num_key_value_heads, config.attention_bias = 1, True
    return save_model(config, folder, **options)


@pytest.fixture(scope="module", autouse=True)
def _quiet_driver() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        spin_less(patch.setattr)
        yield


@pytest.fixture(autouse=True)
def _quick_starts(request: pytest.FixtureRequest) -> Iterator[None]:
    """All but the first start are quick; that one is as a user's."""
    with pytest.MonkeyPatch.context() as patch:
        if next(iter(DIVIDED)) not in request.node.name:
            patch.setattr("vllm.v1.executor.multiproc_executor.get_mp_context", Ranks)
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("family", "noise"), DIVIDED.values(), ids=DIVIDED)
def test_two_ranks_are_one_model_and_a_killed_one_is_an_error_of_ours(
    family: str, noise: dict[str, Any], tmp_path: Path
) -> None:
    """Completions, likelihoods, fingerprints, snapshots and exports of transformers; then the end of a process."""
    dtype = torch.bfloat16 if "weights_dtype" in noise else torch.float32
    folder = save(family, tmp_path / "model", dtype=dtype)
    theirs = load_engine(folder, noise=noise, dtype="auto")
    ours = VllmEngine(Config(model=str(folder), vllm={**SMALL, "tensor_parallel_size": 2}), noise=Noise(7, **noise))
    info = ours.load()
    assert info.base_fingerprint == theirs.anchor.fingerprint
    assert ours.fingerprint() == theirs.fingerprint()
    if dtype == torch.float32:
        assert_as_likely(ours, theirs)
    for update in UPDATES:
        ours.apply(update)
        theirs.apply(update)
        assert ours.fingerprint() == theirs.fingerprint()
    if dtype == torch.float32:
        assert_same(ours, theirs)
        assert ours.drift() == pytest.approx(theirs.drift(), rel=1e-9)
        assert ours.norm(UPDATES[0].terms) == theirs.norm(UPDATES[0].terms)
    ours.snapshot(tmp_path)
    theirs.load(tmp_path)
    assert ours.fingerprint() == theirs.fingerprint()
    ours.load(tmp_path)
    assert ours.fingerprint() == theirs.fingerprint()
    theirs.export(tmp_path / "theirs")
    ours.export(tmp_path / "ours")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("theirs", "ours")]
    assert files[0] == files[1]
    kill_a_rank(ours)
    theirs.close()


def assert_same(ours: VllmEngine, theirs: TransformersEngine) -> None:
    for more in ({}, {"temperature": 1.0, "samples": 2, "stop": ("a",)}):
        work = job(PROMPTS, members=MEMBERS, max_tokens=6, **more)
        assert answers(ours, work) == answers(theirs, work)
    assert_as_likely(ours, theirs)


def assert_as_likely(ours: VllmEngine, theirs: TransformersEngine) -> None:
    asked = job(GIVEN, members=MEMBERS)
    found, expected = ({(x.member, x.answer): x.logprobs for x in e.likelihoods([asked])} for e in (ours, theirs))
    assert all(found[place] == pytest.approx(expected[place], abs=1e-4) for place in expected)


def kill_a_rank(engine: VllmEngine) -> None:
    """Evaluating then fails in seconds, with what to do next; so does all else, and closing still works."""
    os.kill(engine._core._core.model_executor.workers[1].proc.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"vLLM stopped while .* seedtune resume"):
        answers(engine, job(PROMPTS, members=MEMBERS))
    with pytest.raises(EngineError, match="vLLM stopped"):
        engine.fingerprint()
    engine.close()
