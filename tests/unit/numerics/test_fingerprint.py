"""Fingerprints: golden numbers, and sensitivity to every element."""

from __future__ import annotations

import numpy as np
import pytest

from references import mix_sum
from seedtune.numerics import fingerprint as fp
from seedtune.numerics.kernels import cpu
from seedtune.numerics.weights import tensor_fingerprint


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((13, 37)).astype(np.float32)


def test_fingerprints_are_golden() -> None:
    assert fp.tensor_key("w", 4) == (16930792603063476339, 17548696293418801366)
    single, half = np.arange(5, dtype=np.float32), np.arange(5, dtype=np.float16)
    assert fp.to_hex(tensor_fingerprint("w", single)) == "4dd9382253952de3c345d9d27b765644"
    assert fp.to_hex(tensor_fingerprint("w", half)) == "2b21c2b0aa8bf4bacf8fef5461700103"
    assert (
        fp.to_hex(cpu.fingerprint(single.view(np.uint32), fp.tensor_key("w", 4), 2**40))
        == "4632ddbdbcb2b1c1ea6999607de3ee6e"
    )


@pytest.mark.parametrize("start", [0, 3, 2**31 + 1, 2**58])
def test_the_sum_follows_the_written_formula(start: int) -> None:
    bits = np.array([0, 1, 0x3F800000, 0xFFFFFFFF], np.uint32)
    key = (2**64 - 1, 12345)
    assert cpu.fingerprint(bits, key, start) == mix_sum(bits, key, start)


def test_changing_any_single_bit_changes_both_lanes(weights: np.ndarray) -> None:
    base = tensor_fingerprint("w", weights)
    for element in range(0, weights.size, 17):
        for bit in range(32):
            changed = weights.copy()
            changed.reshape(-1).view(np.uint32)[element] ^= np.uint32(1 << bit)
            other = tensor_fingerprint("w", changed)
            assert other[0] != base[0]
            assert other[1] != base[1]


def test_swapped_elements_names_and_element_sizes_are_told_apart(weights: np.ndarray) -> None:
    base = tensor_fingerprint("w", weights)
    swapped = weights.copy()
    swapped[0, :2] = swapped[0, 1::-1]
    assert tensor_fingerprint("w", swapped) != base
    assert tensor_fingerprint("v", weights) != base
    zeros = np.zeros(8, np.uint16)
    assert tensor_fingerprint("w", zeros) != tensor_fingerprint("w", zeros.view(np.uint32))


def test_negative_zero_and_nan_payloads_count_as_changes() -> None:
    prints = {
        tensor_fingerprint("w", np.array([word], np.uint32).view(np.float32))
        for word in (0, 0x80000000, 0x7FC00000, 0x7FC00001)
    }
    assert len(prints) == 4


def test_a_missing_tensor_of_zeros_is_noticed() -> None:
    zeros = tensor_fingerprint("w", np.zeros(4, np.float32))
    assert fp.combine([zeros]) != fp.combine([])
    assert fp.combine([]) == (0, 0)


def test_a_strided_view_has_the_fingerprint_of_its_copy(weights: np.ndarray) -> None:
    view = weights[:, ::2]
    assert tensor_fingerprint("w", view) == tensor_fingerprint("w", view.copy())


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.complex64])
def test_other_element_sizes_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="2- or 4-byte elements"):
        tensor_fingerprint("w", np.zeros(2, dtype))
