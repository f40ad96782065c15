"""Sums in a fixed number of lanes: the definition, number by number, in float32."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import pytest

from seedtune.engines.transformers.cpu_kernels.reductions import LANES, dot_in_lanes, top_in_lanes, total_in_lanes


@nb.njit
def dot(x: Any, y: Any) -> Any:
    return dot_in_lanes(x, x.ctypes.data, y.ctypes.data, x.size)


@nb.njit
def total(x: Any) -> Any:
    return total_in_lanes(x, x.ctypes.data, x.size)


@nb.njit
def top(x: Any) -> Any:
    return top_in_lanes(x, x.ctypes.data, x.size)


def folded(lanes: np.ndarray) -> np.float32:
    while lanes.size > 1:
        lanes = lanes[: lanes.size // 2] + lanes[lanes.size // 2 :]
    return np.float32(lanes[0])


def numbers(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


SIZES = pytest.mark.parametrize("count", [0, 1, 15, 31, 32, 33, 64, 100, 577])


@SIZES
def test_a_dot_is_fused_and_in_lanes(count: int) -> None:
    x, y = numbers(count, 1), numbers(count, 2)
    x, y = ((a.view(np.uint32) & 0xFFFF0000).view(np.float32) for a in (x, y))  # products are exact in float64
    lanes = np.zeros(LANES, np.float32)
    for i in range(count):
        lanes[i % LANES] = np.float32(np.float64(x[i]) * np.float64(y[i]) + np.float64(lanes[i % LANES]))
    assert dot(x, y) == folded(lanes)
    narrow = [(a.view(np.uint32) >> 16).astype(np.uint16) for a in (x, y)]
    assert dot(*narrow) == folded(lanes)


@SIZES
def test_a_total_is_in_lanes(count: int) -> None:
    x, lanes = numbers(count, 3), np.zeros(LANES, np.float32)
    for i in range(count):
        lanes[i % LANES] += x[i]
    assert total(x) == folded(lanes)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100])
def test_the_top_is_the_largest_wherever_it_stands(count: int) -> None:
    for place in {0, count // 2, count - 1}:
        x = numbers(count, 4) - 10.0
        x[place] = -1.0
        assert top(x) == -1.0
