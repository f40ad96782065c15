"""Fingerprints: golden numbers, additivity over slices, and sensitivity to every element."""

from __future__ import annotations

import numpy as np
import pytest

from seedtune.numerics import fingerprint as fp


@pytest.fixture
def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((13, 37)).astype(np.float32)


def sum_by_hand(bits: list[int], key: tuple[int, int], start: int) -> tuple[int, int]:
    lanes = [0, 0]
    for i, value in enumerate(bits):
        for lane, (step, shifts, factors) in enumerate(
            (
                (0x9E3779B97F4A7C15, (30, 27, 31), (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)),
                (0xD1B54A32D192ED03, (33, 33, 33), (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)),
            )
        ):
            z = (value + key[lane] + (start + i) * step) % 2**64
            z = (z ^ z >> shifts[0]) * factors[0] % 2**64
            z = (z ^ z >> shifts[1]) * factors[1] % 2**64
            lanes[lane] = (lanes[lane] + (z ^ z >> shifts[2])) % 2**64
    return lanes[0], lanes[1]


def test_fingerprints_are_golden() -> None:
    assert fp.tensor_key("w", 4) == (16930792603063476339, 17548696293418801366)
    single, half = np.arange(5, dtype=np.float32), np.arange(5, dtype=np.float16)
    assert fp.to_hex(fp.tensor_fingerprint("w", single)) == "4dd9382253952de3c345d9d27b765644"
    assert fp.to_hex(fp.tensor_fingerprint("w", half)) == "2b21c2b0aa8bf4bacf8fef5461700103"
    assert fp.to_hex(fp.tensor_fingerprint("w", single, start=2**40)) == "4632ddbdbcb2b1c1ea6999607de3ee6e"


@pytest.mark.parametrize("start", [0, 3, 2**31 + 1, 2**58])
def test_the_sum_follows_the_written_formula(start: int) -> None:
    bits = np.array([0, 1, 0x3F800000, 0xFFFFFFFF], np.uint32)
    key = (2**64 - 1, 12345)
    assert fp.mix_sum(bits, key, start) == sum_by_hand(bits.tolist(), key, start)


def test_runs_of_a_tensor_add_up_in_any_order(weights: np.ndarray) -> None:
    flat = weights.reshape(-1)
    parts = [fp.tensor_fingerprint("w", flat[a:b], start=a) for a, b in ((200, 481), (0, 7), (7, 200))]
    assert fp.combine(parts) == fp.tensor_fingerprint("w", weights)


def test_long_arrays_are_summed_over_chunks_without_seams() -> None:
    flat = np.arange(fp._CHUNK + 5, dtype=np.uint16)
    parts = [fp.tensor_fingerprint("w", flat[a:b], start=a) for a, b in ((0, 9), (9, flat.size))]
    assert fp.combine(parts) == fp.tensor_fingerprint("w", flat)


def test_changing_any_single_bit_changes_both_lanes(weights: np.ndarray) -> None:
    base = fp.tensor_fingerprint("w", weights)
    for element in range(0, weights.size, 17):
        for bit in range(32):
            changed = weights.copy()
            changed.reshape(-1).view(np.uint32)[element] ^= np.uint32(1 << bit)
            other = fp.tensor_fingerprint("w", changed)
            assert other[0] != base[0]
            assert other[1] != base[1]


def test_swapped_elements_names_and_element_sizes_are_told_apart(weights: np.ndarray) -> None:
    base = fp.tensor_fingerprint("w", weights)
    swapped = weights.copy()
    swapped[0, :2] = swapped[0, 1::-1]
    assert fp.tensor_fingerprint("w", swapped) != base
    assert fp.tensor_fingerprint("v", weights) != base
    zeros = np.zeros(8, np.uint16)
    assert fp.tensor_fingerprint("w", zeros) != fp.tensor_fingerprint("w", zeros.view(np.uint32))


def test_negative_zero_and_nan_payloads_count_as_changes() -> None:
    prints = {
        fp.tensor_fingerprint("w", np.array([word], np.uint32).view(np.float32))
        for word in (0, 0x80000000, 0x7FC00000, 0x7FC00001)
    }
    assert len(prints) == 4


def test_a_missing_tensor_of_zeros_is_noticed() -> None:
    zeros = fp.tensor_fingerprint("w", np.zeros(4, np.float32))
    assert fp.combine([zeros]) != fp.combine([])
    assert fp.combine([]) == (0, 0)


def test_a_strided_view_has_the_fingerprint_of_its_copy(weights: np.ndarray) -> None:
    view = weights[:, ::2]
    assert fp.tensor_fingerprint("w", view) == fp.tensor_fingerprint("w", view.copy())


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.complex64])
def test_other_element_sizes_are_refused(dtype: type) -> None:
    with pytest.raises(ValueError, match="2- or 4-byte elements"):
        fp.tensor_fingerprint("w", np.zeros(2, dtype))
