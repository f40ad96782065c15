"""The largest number of a row is found where torch finds it, among NaNs, infinities, ties and zeros of both signs."""

from __future__ import annotations

import pytest
import torch

from seedtune.engines.transformers.cpu_kernels import reductions
from seedtune.engines.transformers.members.population_linear import bits

TYPES = (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("width", [1, 31, 32, 1025, 5000])
def test_it_is_torchs_choice(dtype: torch.dtype, width: int) -> None:
    rows = torch.randn(9, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    assert reductions.largest(bits(rows)).tolist() == rows.max(-1).indices.tolist()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("numbers", "place"),
    [
        ([1.0, 3.0, 3.0, 2.0], 1),
        ([-1.0, -0.0, 0.0, -2.0], 1),
        ([float("-inf")] * 4, 0),
        ([1.0, float("inf"), float("inf"), 0.0], 1),
        ([1.0, float("nan"), float("inf"), float("nan")], 1),
        ([float("nan")] * 4, 0),
    ],
)
@pytest.mark.parametrize("before", [0, 40, 3000])
def test_the_first_of_equals(dtype: torch.dtype, numbers: list[float], place: int, before: int) -> None:
    row = torch.tensor([*[min(numbers[0], -5.0)] * before, *numbers]).to(dtype)[None]
    expected = row.max(-1).indices.tolist()
    assert reductions.largest(bits(row)).tolist() == expected
    if before == 0:
        assert expected == [place]
