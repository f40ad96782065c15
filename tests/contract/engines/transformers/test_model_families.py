"""Every model family: a batched member is the model that plain Hugging Face makes of W + s·σ·E."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from models import (
    FAMILIES,
    ORIGINAL,
    ROPES,
    UNSUPPORTED,
    answers,
    assert_members_are_materialised_models,
    job,
    load_engine,
    save_family,
    save_model,
    text_prompts,
)
from seedtune.errors import DataError, ModelError
from seedtune.types import UNPERTURBED, Member

MEMBERS = (Member(3, 0, 1), Member(3, 0, -1), UNPERTURBED, Member(2, 9, -1))
PROMPTS = text_prompts("Hello there", "x", "The quick brown fox jumps", "Hello therein", "Hello", "x")
"""Some share beginnings, which a member's prefill computes once; one is repeated."""
SIGMA = 0.05
NEW = 8
IN_WAVES = {"max_rows": 4, "prefill_tokens": 16}
MODES: dict[str, dict[str, Any]] = {
    "rank1": {},
    "rank4-waves": {"rank": 4, **IN_WAVES},
    "flipout": {"noise": {"perturbation": "flipout"}},
    "flipout-waves": {"noise": {"perturbation": "flipout", "shared_noise": 3}, **IN_WAVES},
}
TURNS = (("rank1", "flipout-waves"), ("rank4-waves", "flipout"))
"""Every family meets both perturbations, at once and in waves."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def folder(family: str) -> Path:
        return save_family(family, tmp_path_factory.mktemp(family))

    return folder


@pytest.mark.parametrize(
    ("family", "mode"), [(family, mode) for turn, family in enumerate(FAMILIES) for mode in TURNS[turn % 2]]
)
def test_batched_members_equal_materialised_models_one_at_a_time(
    family: str, mode: str, folders: Callable[[str], Path]
) -> None:
    engine = load_engine(folders(family), **MODES[mode])
    first = assert_members_are_materialised_models(engine, folders(family), MEMBERS, PROMPTS, sigma=SIGMA, new=NEW)
    _assert_far_apart(first)


@pytest.mark.parametrize(("rope", "context"), [("longrope", ORIGINAL), ("dynamic", 64)])
def test_no_row_comes_to_where_it_would_turn_the_others_by_other_angles(
    rope: str, context: int, tmp_path: Path
) -> None:
    engine = load_engine(save_model(ROPES[rope](), tmp_path))
    assert engine.tokenizer.context_length == context
    assert_members_are_materialised_models(engine, tmp_path, MEMBERS[:3], PROMPTS[:3], sigma=SIGMA, new=NEW)
    assert len(answers(engine, job(text_prompts("short", "x" * (context - 8))))) == 2
    with pytest.raises(DataError, match=f"exceeds the model's context of {context}"):
        answers(engine, job(text_prompts("short", "x" * (context - 7))))


def _assert_far_apart(logits: list[torch.Tensor]) -> None:
    """Members differ by far more than the tolerance, or the comparison above would mean nothing."""
    for i, one in enumerate(logits):
        assert all((one - other).abs().max() > 0.05 for other in logits[:i])


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_routed_experts_and_routers_are_listed_as_unperturbed(family: str, folders: Callable[[str], Path]) -> None:
    engine = load_engine(folders(family))
    listed = dict(engine.perturbation.coverage.unperturbed)
    for name in ("experts.gate_up_proj", "experts.down_proj", "gate.weight"):
        assert any(pattern.endswith(name) for pattern in listed), name
    assert not any(".experts." in name for name in engine.weights.tensors)


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_model_that_cannot_be_batched_is_refused_when_it_is_loaded(kind: str, tmp_path: Path) -> None:
    save_model(UNSUPPORTED[kind](), tmp_path)
    with pytest.raises(ModelError, match=r"cannot batch yet|does not support"):
        load_engine(tmp_path)
