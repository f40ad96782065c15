"""What differs on a GPU: work goes on after the call that starts it, and memory ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models import answers, job, load_engine, save_family, text_prompts
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.errors import EngineError
from seedtune.types import Member, Prompt, Term, Update

PROMPTS = text_prompts("Hello there", "x")
MEMBERS = (Member(1, 0, 1), Member(1, 0, -1))
ASKED = (Prompt(0, "Hello", answers=(" you",)),)
PERTURB, UPDATE = 5.0, 3.0
"""Seconds that the stand-in's kernels take."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family("llama", tmp_path_factory.mktemp("llama"))


class SlowDevice:
    """A clock that moves only while a caller waits for the kernels that it launched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.pending = 0.0
        self.waited_for: set[str] = set()
        self._patch = monkeypatch.setattr
        self._patch("time.perf_counter", lambda: self.now)
        self._patch(torch.accelerator, "synchronize", self.synchronize)

    def synchronize(self, device: torch.device) -> None:
        self.waited_for.add(str(device))
        self.now, self.pending = self.now + self.pending, 0.0

    def launches(self, owner: Any, name: str, seconds: float) -> None:
        """Let a method return before its kernels are done."""
        method = getattr(owner, name)

        def launched(*arguments: Any, **named: Any) -> Any:
            self.pending += seconds
            return method(*arguments, **named)

        self._patch(owner, name, launched)


@pytest.fixture(params=["lowrank", "gaussian"])
def engine(request: pytest.FixtureRequest, folder: Path) -> TransformersEngine:
    return load_engine(folder, noise={"perturbation": request.param}, device="cpu")


def slow(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, device: str) -> SlowDevice:
    found = SlowDevice(monkeypatch)
    found.launches(engine.perturbation, "set_members", PERTURB)
    found.launches(engine.weights, "apply", UPDATE)
    engine.device = torch.device(device)
    return found


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_the_seconds_of_kernels_count_where_they_are_launched(
    engine: TransformersEngine, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, batches = slow(engine, monkeypatch, device), 1 if engine.perturbation.together else len(MEMBERS)
    answers(engine, job(PROMPTS, members=MEMBERS))
    engine.apply(Update(1, (Term(1, 0, 0.01),)))
    times = engine.take_times()
    assert (times.perturb, times.update) == (PERTURB * batches, UPDATE)
    assert (times.prefill, times.decode) == (0.0, 0.0)
    list(engine.likelihoods([job(ASKED, members=MEMBERS)]))
    assert engine.take_times().prefill == 0.0
    engine.logprobs(ASKED, [[5, 6]])
    assert engine.take_times().prefill == 0.0
    assert found.waited_for == {device}


def test_a_cpu_is_not_waited_for(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = slow(engine, monkeypatch, "cpu")
    answers(engine, job(PROMPTS, members=MEMBERS))
    engine.apply(Update(1, (Term(1, 0, 0.01),)))
    engine.logprobs(ASKED, [[5, 6]])
    assert not found.waited_for


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.91 GiB.\nSee the documentation.")


@pytest.mark.parametrize(("owner", "method"), [("model", "forward"), ("perturbation", "set_members")])
def test_where_memory_ends_the_settings_to_lower_are_named(
    engine: TransformersEngine, owner: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = job(PROMPTS, members=MEMBERS)
    expected = answers(engine, work)
    message = (
        r"cpu ran out of memory \(CUDA out of memory\. Tried to allocate 3\.91 GiB\.\)\. Lower "
        r"transformers\.max_batch_tokens=65536 .* or transformers\.max_rows=256 "
    )
    with monkeypatch.context() as patch:
        patch.setattr(getattr(engine, owner), method, out_of_memory)
        for ask in (
            lambda: answers(engine, work),
            lambda: list(engine.likelihoods([job(ASKED, members=MEMBERS)])),
            lambda: engine.logprobs(ASKED, [[5, 6]]),
        ):
            with pytest.raises(EngineError, match=message):
                ask()
    assert answers(engine, work) == expected
