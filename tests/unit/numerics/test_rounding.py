"""Rounding to 16-bit weights: IEEE to nearest even, and at random with the exact value as the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seedtune.numerics import noise, rounding

HALVES = ("bfloat16", "float16")
LARGEST = {"bfloat16": 0x7F7F, "float16": 0x7BFF}
INFINITE = {"bfloat16": 0x7F80, "float16": 0x7C00}
EVERY_CODE = np.arange(1 << 16, dtype=np.uint16)
EVERY_ELEMENT = np.arange(1 << 16, dtype=np.uint16)


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16)


def elements(dtype: str) -> np.ndarray:
    """Every element of a type, NaN and infinities included."""
    return EVERY_ELEMENT.view(rounding.ARRAYS[dtype])


def singles(*words: int) -> np.ndarray:
    return np.array(words, np.uint32).view(np.float32)


def assorted(count: int = 1 << 18) -> np.ndarray:
    """float32 numbers of every kind: random bits, and random numbers in the small range of float16."""
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 2**32, count, np.uint32).view(np.float32)
    small = rng.standard_normal(count, np.float32) * np.float32(2.0**-14)
    halfway = rounding.widen(elements("bfloat16")).view(np.uint32) | np.uint32(0x8000)
    ties = rounding.widen(elements("float16")[:0x7BFF]).view(np.uint32) | np.uint32(0x1000)
    edges = singles(0, 1, 0x33000000, 0x33000001, 0x477FEFFF, 0x477FF000, 0x7F7FFFFF, 0x7F800000)
    return np.concatenate([anything, small, halfway.view(np.float32), ties.view(np.float32), edges, -edges])


def chance(value: float, dtype: str, codes: np.ndarray = EVERY_CODE) -> np.ndarray:
    """One value rounded with each of the codes, as float64."""
    values = np.full(codes.size, value, np.float32)
    return rounding.widen(rounding.stochastic(values, codes, dtype)).astype(np.float64)


# ------------------------------------------------------------------------------------------------ to nearest


@pytest.mark.parametrize("dtype", HALVES)
def test_nearest_is_the_processors_rounding(dtype):
    values = assorted()
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.uint16).numpy()
    assert (bits(rounding.nearest(values, dtype)) == expected).all()


def test_nearest_is_numpys_rounding_to_float16():
    values = assorted()
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    assert (bits(rounding.nearest(values, "float16")) == bits(expected)).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_every_element_is_its_own_nearest(dtype):
    found = rounding.nearest(rounding.widen(elements(dtype)), dtype)
    number = ~np.isnan(rounding.widen(elements(dtype)))
    assert (bits(found) == EVERY_ELEMENT)[number].all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("word", [0x7F800001, 0x7FFFFFFF, 0xFF800001, 0xFFC00000])
def test_a_nan_stays_a_quiet_nan_of_its_sign(dtype, word):
    nan, code = singles(word), np.array([0xFFFF], np.uint16)
    for found in (rounding.nearest(nan, dtype), rounding.stochastic(nan, code, dtype)):
        quiet = INFINITE[dtype] | {"bfloat16": 0x40, "float16": 0x200}[dtype]
        assert int(bits(found)[0]) & quiet == quiet
        assert int(bits(found)[0]) >> 15 == word >> 31


def test_float32_is_not_rounded():
    values = assorted()
    codes = np.zeros(values.size, np.uint16)
    assert (rounding.nearest(values, "float32").view(np.uint32) == values.view(np.uint32)).all()
    assert (rounding.stochastic(values, codes, "float32").view(np.uint32) == values.view(np.uint32)).all()


def test_other_element_types_are_refused_by_name():
    with pytest.raises(ValueError, match="not float64"):
        rounding.widen(np.zeros(3))


# ------------------------------------------------------------------------------------------------ at random


@pytest.mark.parametrize("value", [1.001, -3.14159, 1e-3, 6.1e-5, -1.7e38, 3e-39, 2.0**-133 * 1.37])
def test_the_mean_over_all_codes_is_the_exact_value_in_bfloat16(value):
    value = float(np.float32(value))
    assert chance(value, "bfloat16").mean() == value


@pytest.mark.parametrize("value", [1.0001, -3.14159, 1e-3, 6.2e-5, -60000.3])
def test_the_mean_over_all_codes_is_the_exact_value_in_float16(value):
    value = float(np.float32(value))
    assert chance(value, "float16").mean() == value


@pytest.mark.parametrize("value", [6.1e-5, -1.2345e-5, 5.9e-8, -1e-9, 2.0**-41])
def test_the_mean_of_the_smallest_float16_numbers_misses_less_than_the_last_of_40_bits(value):
    value = float(np.float32(value))
    miss = abs(value) - abs(chance(value, "float16").mean())
    assert 0 <= miss < 2.0**-40


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("value", [0.0123456, -2.7182818, 1.6e-5])
def test_the_mean_over_drawn_codes_is_within_its_standard_error(dtype, value):
    address = noise.Address(noise.key(5, "w"), noise.Stream.ROUNDING, generation=9)
    drawn = chance(value, dtype, noise.codes(address, 123, 400_000))
    assert drawn.std() > 0
    assert abs(drawn.mean() - float(np.float32(value))) < 4 * drawn.std() / np.sqrt(drawn.size)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_value_goes_to_one_of_its_two_neighbours(dtype):
    values = assorted()
    values = values[np.isfinite(values)]
    codes = noise.codes(noise.Address((1, 2), noise.Stream.ROUNDING), 0, values.size)
    found = rounding.widen(rounding.stochastic(values, codes, dtype)).astype(np.float64)
    largest = float(rounding.widen(np.array([LARGEST[dtype]], np.uint16).view(rounding.ARRAYS[dtype]))[0])
    exact = np.clip(values.astype(np.float64), -largest, largest)
    mantissa, smallest = {"bfloat16": (8, 2.0**-133), "float16": (11, 2.0**-24)}[dtype]
    step = np.maximum(np.exp2(np.floor(np.log2(np.maximum(np.abs(exact), 1e-300))) + 1 - mantissa), smallest)
    assert (np.abs(found - exact) < step).all()
    assert (np.signbit(found) == np.signbit(values)).all()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("code", [0, 1, 7, 8, 0x7FFF, 0x8000, 0xFFFF])
def test_a_representable_value_never_moves(dtype, code):
    values = rounding.widen(elements(dtype))
    found = rounding.stochastic(values, np.full(values.size, code, np.uint16), dtype)
    assert (bits(found) == EVERY_ELEMENT)[~np.isnan(values)].all()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_finite_value_never_becomes_infinite_and_an_infinite_one_stays(dtype):
    beyond = singles(0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000)
    found = bits(rounding.stochastic(beyond, np.full(4, 0xFFFF, np.uint16), dtype))
    largest, infinite = LARGEST[dtype], INFINITE[dtype]
    assert list(found) == [largest, largest | 0x8000, infinite, infinite | 0x8000]


def test_numbers_beyond_float16_saturate():
    beyond = np.array([65504.1, 65519, 65536, 1e30, -65520], np.float32)
    found = rounding.stochastic(beyond, np.full(5, 0xFFFF, np.uint16), "float16")
    assert list(found) == [65504.0, 65504.0, 65504.0, 65504.0, -65504.0]


@pytest.mark.parametrize("dtype", HALVES)
def test_zeros_keep_their_signs(dtype):
    zeros, codes = np.array([0.0, -0.0], np.float32), np.full(2, 0xFFFF, np.uint16)
    for found in (rounding.nearest(zeros, dtype), rounding.stochastic(zeros, codes, dtype)):
        assert list(bits(found)) == [0, 0x8000]
