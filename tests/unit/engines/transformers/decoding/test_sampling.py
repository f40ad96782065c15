"""Tokens by draws: those of the exact distribution, by compiled kernels and by torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seedtune.engines.transformers import device
from seedtune.engines.transformers.decoding import sampling
from seedtune.types import Sampling

VOCABULARY = 5000
WAYS = pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])


def chosen(logits: torch.Tensor, points: Any, kernels: bool, **options: float) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "KERNELS", kernels)
        found = sampling.choose(logits, Sampling(1, **options), torch.tensor(points, dtype=torch.float32))
    assert found.dtype == torch.int64
    return found.tolist()


def distribution(row: torch.Tensor, temperature: float, top_p: float) -> np.ndarray:
    """Chances in float64; zero for what is cut off."""
    masses = (row.double() / temperature).softmax(-1).numpy()
    order = np.argsort(-masses, kind="stable")
    before = np.cumsum(masses[order]) - masses[order]
    kept = np.zeros_like(masses)
    kept[order[before < top_p]] = masses[order[before < top_p]]
    return kept / kept.sum()


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.9), (2.0, 0.35), (0.7, 0.999)])
def test_a_token_holds_its_point_of_the_distribution(
    temperature: float, top_p: float, dtype: torch.dtype, kernels: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = (torch.randn(40, VOCABULARY, generator=generator) * 3).to(dtype)
    points = torch.rand(40, generator=generator).tolist()
    tokens = chosen(logits, points, kernels, temperature=temperature, top_p=top_p)
    for row, token, point in zip(logits, tokens, points, strict=True):
        masses = distribution(row, temperature, top_p)
        after = np.cumsum(masses)
        # at the cut, tokens of one probability are all kept
        slack = 1e-5 if top_p == 1.0 or dtype == torch.float32 else 0.01
        assert after[token] - masses[token] - slack <= point <= after[token] + slack
        assert masses[token] > 0 or row[token] == row[masses > 0].min()


@WAYS
def test_the_ends_of_the_unit_interval_are_tokens_with_a_chance(kernels: bool) -> None:
    """A draw just below one rounds to one in float32."""
    logits = torch.full((2, 3000), -torch.inf)
    logits[:, 1000:1300] = 1.0
    assert chosen(logits, [0.0, 1.0], kernels, temperature=1.0) == [1000, 1299]
    assert chosen(logits, [0.0, 1.0], kernels, temperature=1.0, top_p=0.5) == [1000, 1299]


@WAYS
def test_the_most_likely_token_is_kept_by_any_top_p_and_chosen_at_any_low_temperature(kernels: bool) -> None:
    logits = torch.randn(20, 700, generator=torch.Generator().manual_seed(1))
    points = torch.linspace(0, 1, 20).tolist()
    assert chosen(logits, points, kernels, temperature=1.0, top_p=1e-9) == logits.argmax(-1).tolist()
    for temperature in (1e-4, 1e-40):
        assert chosen(logits, points, kernels, temperature=temperature) == logits.argmax(-1).tolist()


@WAYS
def test_broken_numbers_have_no_chance_and_rows_of_them_give_a_token_of_the_vocabulary(kernels: bool) -> None:
    logits = torch.zeros(4, 9)
    logits[0, 3:] = torch.nan
    logits[1] = torch.nan
    logits[2] = -torch.inf
    logits[3, 4] = torch.inf
    for point in (0.0, 0.5, 1.0):
        first, *others = chosen(logits, [point] * 4, kernels, temperature=1.0)
        assert first in range(3)
        assert all(token in range(9) for token in others)


def test_kernels_and_torch_choose_alike() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(200, VOCABULARY, generator=generator) * 2
    points = torch.rand(200, generator=generator).tolist()
    for top_p in (1.0, 0.8):
        ours, theirs = (chosen(logits, points, kernels, temperature=1.0, top_p=top_p) for kernels in (True, False))
        assert np.mean(np.array(ours) == np.array(theirs)) > 0.98  # a point between two tokens falls to either
