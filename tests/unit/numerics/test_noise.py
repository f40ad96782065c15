"""The numpy reference of noise scheme v1: golden numbers, addressing, independence of addresses and lanes."""

from __future__ import annotations

import hashlib
import math
from itertools import combinations

import numpy as np
import pytest

from seedtune.numerics import noise
from seedtune.numerics.noise import Address, Stream

NAME = "model.layers.0.self_attn.q_proj.weight"
KEY = noise.key(42, NAME)
HERE = Address(KEY, Stream.GAUSSIAN, generation=7, pair=3)
COUNT = 1 << 18


def hexes(values: np.ndarray) -> list[str]:
    return [f"{word:08x}" for word in np.ascontiguousarray(values).view(np.uint32).reshape(-1)]


def philox_by_hand(counter: list[int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 in plain integers, written from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def normal_by_hand(address: Address, element: int) -> np.float32:
    block, lane = divmod(element, 8)
    high = address.stream * 2**24 + block // 2**32
    counter = [block % 2**32, high, address.pair, address.generation]
    word = philox_by_hand(counter, address.key)[lane // 2]
    return noise.quantiles()[word >> 16 if lane % 2 else word & 0xFFFF]


# -------------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected) -> None:
    assert noise.philox4x32(np.array([counter], np.uint32), key).tolist() == [expected]
    assert philox_by_hand(counter, key) == expected


def test_the_table_has_the_schemes_hash_and_unit_variance() -> None:
    table = noise.quantiles()
    assert hashlib.sha256(table.astype("<f4").tobytes()).hexdigest() == noise.TABLE_SHA256
    assert table.shape == (65536,)
    assert table.dtype == np.float32
    assert (table == -table[::-1]).all()
    assert table.max() == pytest.approx(4.325, abs=1e-3)
    assert table.astype(np.float64).std() == pytest.approx(1, abs=1e-8)
    assert (table.astype(np.float64) ** 4).mean() == pytest.approx(2.9992, abs=1e-4)


def test_the_table_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        noise.quantiles()[0] = 1


def test_another_platforms_table_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "TABLE_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="math library rounds differently"):
        noise.quantiles.__wrapped__()


def test_keys_are_golden() -> None:
    assert noise.key(42, NAME) == (4188904742, 2800538471)
    assert noise.key(2**64 - 1, "é") == (2015490914, 680775322)


def test_normals_are_golden() -> None:
    first = ["3f191be3", "3f21da36", "bfdd870a", "bf215fd6", "3fce5886", "c0011d2a", "ba6ba01f", "be7e9db6"]
    assert hexes(noise.normals(HERE, 0, 8)) == first
    assert hexes(noise.normals(HERE, 2**31 + 5, 3)) == ["bff78519", "3f3c3808", "3f51e188"]
    assert hexes(noise.normals(HERE, 2**40 + 1, 3)) == ["bf3febbf", "bdcd7579", "be96058b"]


def test_factors_are_golden() -> None:
    a, b = noise.factors(HERE, (4, 3), rank=2)
    assert hexes(a[3]) == ["be85d280", "bfca3c04"]
    assert hexes(b[2]) == ["bf7e06d3", "3ebcf61d"]


def test_integers_uniforms_and_permutations_are_golden() -> None:
    sampling = Address(KEY, Stream.SAMPLING, generation=7)
    expected = [9500654079056566000, 17578848206114542240, 6222462708939037168]
    assert noise.integers(sampling, 0, 3).tolist() == expected
    assert noise.uniforms(sampling, 1, 2).tolist() == [0.9529512707431149, 0.33732037936208703]
    order = Address(KEY, Stream.ORDER, generation=1)
    assert noise.permutation(order, 10).tolist() == [3, 8, 1, 6, 2, 5, 9, 0, 7, 4]


def test_stream_numbers_never_change() -> None:
    numbers = (
        noise.GAUSSIAN,
        noise.FACTOR_A,
        noise.FACTOR_B,
        noise.ROUNDING,
        noise.SUBSPACE,
        noise.SAMPLING,
        noise.ORDER,
    )
    assert numbers == tuple(range(7))


# ------------------------------------------------------------------------------------------------ addressing


@pytest.mark.parametrize("start", [0, 1, 7, 8, 2**31 - 3, 2**32 - 1, 2**35 - 4, 2**40 + 5, 2**59 - 20])
def test_normals_follow_the_written_scheme_element_by_element(start: int) -> None:
    address = Address(KEY, Stream.FACTOR_B, generation=2**32 - 1, pair=2**31 + 1)
    expected = [normal_by_hand(address, start + i) for i in range(20)]
    assert hexes(noise.normals(address, start, 20)) == hexes(np.array(expected))


def test_any_part_of_a_run_equals_the_same_part_of_the_whole() -> None:
    whole = noise.normals(HERE, 0, 100)
    for start in range(18):
        for count in (0, 1, 5, 8, 33):
            assert (noise.normals(HERE, start, count) == whole[start : start + count]).all()


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (3, 8), (16, 9), (4, 64), (40, 1)])
def test_any_slice_of_a_tensor_equals_the_same_slice_of_the_whole(shape: tuple[int, int]) -> None:
    whole = noise.normals(HERE, 0, shape[0] * shape[1]).reshape(shape)
    for row in (slice(None), slice(1, None), slice(0, 1), slice(shape[0] // 2, shape[0]), slice(0, 0)):
        for col in (slice(None), slice(1, None), slice(0, 1), slice(shape[1] // 3, shape[1] // 2)):
            if (row.start or 0) <= shape[0] and (col.start or 0) <= shape[1]:
                part = noise.normals_slice(HERE, shape, row=row, col=col)
                assert part.shape == whole[row, col].shape
                assert (part == whole[row, col]).all()


def test_a_slice_far_into_a_huge_tensor_needs_no_memory() -> None:
    columns = 2**20 + 3
    part = noise.normals_slice(HERE, (2**30, columns), row=slice(2**29, 2**29 + 3), col=slice(11, 30))
    expected = [noise.normals(HERE, (2**29 + i) * columns + 11, 19) for i in range(3)]
    assert (part == np.stack(expected)).all()


def test_factor_rows_equal_the_rows_of_the_whole_factors() -> None:
    a, b = noise.factors(HERE, (33, 21), rank=3)
    assert a.shape == (33, 3)
    assert b.shape == (21, 3)
    part_a, part_b = noise.factors(HERE, (33, 21), rank=3, row=slice(5, 30), col=slice(20, 21))
    assert (part_a == a[5:30]).all()
    assert (part_b == b[20:21]).all()
    assert not (a[:21] == b).any()


def test_factors_ignore_the_stream_of_the_address() -> None:
    rounding = Address(HERE.key, Stream.ROUNDING, HERE.generation, HERE.pair)
    for one, other in zip(noise.factors(HERE, (4, 5)), noise.factors(rounding, (4, 5)), strict=True):
        assert (one == other).all()


def test_integers_and_uniforms_can_start_anywhere() -> None:
    whole = noise.integers(HERE, 0, 20)
    assert (noise.integers(HERE, 7, 6) == whole[7:13]).all()
    assert (noise.uniforms(HERE, 7, 6) == whole[7:13].astype(object) // 2**11 / 2**53).all()


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_a_permutation_holds_every_index_once(n: int) -> None:
    assert sorted(noise.permutation(HERE, n).tolist()) == list(range(n))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_run_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=f"run seed is {seed}"):
        noise.key(seed, NAME)


@pytest.mark.parametrize("field", ["generation", "pair"])
@pytest.mark.parametrize("value", [-1, 2**32])
def test_a_generation_or_pair_out_of_range_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}, but"):
        Address(KEY, **{field: value})


def test_other_impossible_addresses_are_refused() -> None:
    for arguments in ((2**32, 0), 0), ((0, -1), 0), ((0, 0), 256):
        with pytest.raises(ValueError, match="must be at least 0 and below"):
            Address(*arguments)
    for start, count in ((-1, 2), (0, -1), (2**59 - 1, 2)):
        with pytest.raises(ValueError, match="element range"):
            noise.normals(HERE, start, count)
    with pytest.raises(ValueError, match="block range"):
        noise.philox_words(HERE, 2**56, 1)
    with pytest.raises(ValueError, match="index range"):
        noise.integers(HERE, 2**57, 1)


def test_slices_out_of_range_are_refused_rather_than_clipped() -> None:
    for row in (slice(0, 5), slice(-1, None), slice(3, 2), slice(0, 4, 2)):
        with pytest.raises(ValueError, match="not a plain range inside 0:4"):
            noise.normals_slice(HERE, (4, 4), row=row)


# ------------------------------------------------------------------------------------------------ statistics
# All seeds are fixed, so these cannot flake; limits are five to six standard deviations.


def test_mean_variance_skewness_and_kurtosis_are_a_normals() -> None:
    n = 1 << 20
    x = noise.normals(HERE, 0, n).astype(np.float64)
    assert abs(x.mean()) < 5 / math.sqrt(n)
    assert abs((x**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((x**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((x**4).mean() - 2.9992) < 5 * math.sqrt(96 / n)


NEIGHBOURS = {
    "another tensor of equal shape": Address(noise.key(42, NAME.replace("q_proj", "k_proj")), 0, 7, 3),
    "the same tensor of the next layer": Address(noise.key(42, NAME.replace(".0.", ".1.")), 0, 7, 3),
    "the next pair": Address(KEY, 0, 7, 4),
    "the next generation": Address(KEY, 0, 8, 3),
    "generation and pair swapped": Address(KEY, 0, 3, 7),
    "the next run seed": Address(noise.key(43, NAME), 0, 7, 3),
    "the run seed with a high bit": Address(noise.key(42 + 2**32, NAME), 0, 7, 3),
    "the next stream": Address(KEY, 1, 7, 3),
}


@pytest.mark.parametrize("address", NEIGHBOURS.values(), ids=NEIGHBOURS.keys())
def test_neighbouring_addresses_are_uncorrelated(address: Address) -> None:
    x, y = noise.normals(HERE, 0, COUNT), noise.normals(address, 0, COUNT)
    for shift in (0, 1, 8):
        a, b = x[: COUNT - shift], y[shift:]
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(COUNT)
        assert abs(np.corrcoef(a**2, b**2)[0, 1]) < 5 / math.sqrt(COUNT)


def test_elements_are_uncorrelated_at_short_and_block_distances() -> None:
    x = noise.normals(HERE, 0, COUNT)
    for lag in (1, 2, 3, 4, 5, 6, 7, 8, 16, 64, 576, 1024):
        assert abs(np.corrcoef(x[:-lag], x[lag:])[0, 1]) < 5 / math.sqrt(COUNT - lag)


def chi_square(symbols: np.ndarray) -> float:
    """Standard deviations by which the chi-square of 256 equally likely symbols exceeds its mean."""
    counts = np.bincount(symbols, minlength=256)
    expected = symbols.size / 256
    return float((((counts - expected) ** 2).sum() / expected - 255) / math.sqrt(2 * 255))


def worst_lane(codes: np.ndarray) -> float:
    """High and low byte of every lane's codes (uint16 [blocks, 8]) against the uniform distribution."""
    return max(chi_square(codes[:, lane] >> shift & 0xFF) for lane in range(8) for shift in (0, 8))


def worst_pair_of_lanes(codes: np.ndarray) -> float:
    """Top four bits of one lane with top, or bottom, four bits of another, as 256 symbols."""
    top, bottom = codes >> 12, codes & 15
    pairs = list(combinations(range(8), 2))
    return max(chi_square(x[:, i] * 16 + y[:, j]) for i, j in pairs for x, y in ((top, top), (bottom, bottom)))


def worst_kolmogorov_smirnov(values: np.ndarray) -> float:
    """Largest distance of a lane's empirical distribution from the normal one, times sqrt(n)."""
    n = values.shape[0]
    erf = np.frompyfunc(math.erf, 1, 1)
    steps = np.arange(n + 1) / n
    worst = 0.0
    for lane in range(8):
        exact = 0.5 + 0.5 * erf(np.sort(values[:, lane]).astype(np.float64) / math.sqrt(2)).astype(np.float64)
        worst = max(worst, (steps[1:] - exact).max(), (exact - steps[:-1]).max())
    return worst * math.sqrt(n)


@pytest.fixture(scope="module")
def lanes() -> np.ndarray:
    return noise.codes(HERE, 0, 8 << 15).reshape(-1, 8)


def test_every_lane_is_uniform_independent_and_normal(lanes: np.ndarray) -> None:
    assert worst_lane(lanes) < 6
    assert worst_pair_of_lanes(lanes) < 6
    assert worst_kolmogorov_smirnov(noise.quantiles()[lanes]) < 2.2


def test_the_lane_tests_catch_a_lane_that_repeats_another(lanes: np.ndarray) -> None:
    broken = lanes.copy()
    broken[:, 3] = broken[:, 2]
    assert worst_pair_of_lanes(broken) > 100
    assert worst_lane(broken) < 6  # alone the copied lane looks fine, which is why pairs are tested


def test_the_lane_tests_catch_a_lane_with_a_lost_bit(lanes: np.ndarray) -> None:
    broken = lanes.copy()
    broken[:, 5] &= 0xFFFE
    assert worst_lane(broken) > 100
    broken = lanes.copy()
    broken[:, 6] >>= 1
    assert worst_lane(broken) > 100
    assert worst_kolmogorov_smirnov(noise.quantiles()[broken]) > 10


def test_the_lane_tests_catch_a_lane_of_slightly_wrong_scale(lanes: np.ndarray) -> None:
    values = noise.quantiles()[lanes]
    values[:, 4] *= np.float32(1.1)
    assert worst_kolmogorov_smirnov(values) > 3


def test_uniforms_fill_the_unit_interval_evenly() -> None:
    x = noise.uniforms(Address(KEY, Stream.SAMPLING), 0, COUNT)
    assert x.min() >= 0
    assert x.max() < 1
    assert abs(chi_square((x * 256).astype(np.int64))) < 6


def test_permutations_are_fair_in_every_place() -> None:
    drawn = [noise.permutation(Address(KEY, Stream.ORDER, g), 4).tolist() for g in range(2400)]
    counts = np.unique(np.array(drawn) @ [64, 16, 4, 1], return_counts=True)[1]
    assert counts.size == 24
    assert (np.abs(counts - 100) < 50).all()
