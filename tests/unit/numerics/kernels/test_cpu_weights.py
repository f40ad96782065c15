"""The CPU kernels perturb and update weights of every type with the reference's bits, however they are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numba
import numpy as np
import pytest

import references
from references import DTYPES, an_update, same_bits, weights
from seedtune.numerics import noise, rounding
from seedtune.numerics.kernels import cpu
from seedtune.numerics.kernels import cpu_compiled as compiled
from seedtune.numerics.noise import Address, Stream
from seedtune.types import Decay, Term, Update

KEY = noise.key(42, "model.layers.0.mlp.up_proj.weight")
HERE = Address(KEY, Stream.GAUSSIAN, generation=2**32 - 1, pair=2**31 + 5)
BIG = 2 * cpu.PARALLEL_FROM + 13
TYPES = [("float32", "float32"), ("float32", "float16"), ("float32", "bfloat16")]
TYPES += [("float16", "float16"), ("bfloat16", "bfloat16")]
SEVERAL = (
    an_update(3, 5),
    Update(4, ()),
    an_update(5, 4, decay=Decay(l2=0.01)),
    an_update(6, 1, decay=Decay(l1=0.001)),
    Update(7, (), Decay(0.1, 0.002)),
    an_update(9, 7, decay=Decay(0.25, 1e-5)),
)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = numba.get_num_threads()
    count = min(request.param, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    yield count
    numba.set_num_threads(before)


def empty(dtype: str, count: int) -> np.ndarray:
    """Ones, so that an element which is not written shows."""
    return np.full(count, 1, rounding.ARRAYS[dtype])


# ------------------------------------------------------------------------------------------------ perturb


@pytest.mark.parametrize(("source", "goal"), TYPES)
@pytest.mark.parametrize(
    ("count", "start"), [(0, 0), (1, 0), (7, 3), (64, 0), (200, 3), (576, 8), (1777, 2**31 - 900), (777, 2**40 + 6)]
)
def test_a_perturbed_weight_is_the_rounded_sum(source: str, goal: str, count: int, start: int) -> None:
    theta, out = weights(source, count), empty(goal, count)
    cpu.perturb(out, theta, -0.0123456789, HERE, start)
    assert same_bits(out, references.perturbed(theta, -0.0123456789, HERE, start=start, dtype=goal))


@pytest.mark.parametrize(("source", "goal"), TYPES)
@pytest.mark.parametrize("start", [0, 2**40 + 5])
def test_many_weights_are_perturbed_alike_by_any_threads(threads: int, source: str, goal: str, start: int) -> None:
    theta, out = weights(source, BIG), empty(goal, BIG)
    cpu.perturb(out, theta, 0.02, HERE, start)
    assert same_bits(out, references.perturbed(theta, 0.02, HERE, start=start, dtype=goal))


@pytest.mark.parametrize(("source", "goal"), TYPES)
def test_without_sigma_the_weights_are_rounded(threads: int, source: str, goal: str) -> None:
    for count in (3, BIG):
        theta, out = weights(source, count), empty(goal, count)
        cpu.perturb(out, theta, 0.0, HERE)
        assert same_bits(out, rounding.nearest(rounding.widen(theta), goal))


@pytest.mark.parametrize(("source", "goal"), TYPES)
def test_every_kind_of_number_is_perturbed_as_in_the_reference(source: str, goal: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    bits = every if source != "float32" else np.random.default_rng(0).integers(0, 2**32, 1 << 16, np.uint32)
    theta, out = bits.view(rounding.ARRAYS[source]), empty(goal, 1 << 16)
    number = np.isfinite(rounding.widen(theta))
    for sigma in (0.0, 1e-6, 3.0):
        cpu.perturb(out, theta, sigma, HERE)
        with np.errstate(over="ignore", invalid="ignore"):
            expected = references.perturbed(theta, sigma, HERE, dtype=goal)
        assert same_bits(out[number], expected[number])
        assert (np.isnan(rounding.widen(out)) == np.isnan(rounding.widen(theta))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_perturbing_in_place_gives_the_same_bits(dtype: str) -> None:
    theta = weights(dtype, 1000)
    expected = references.perturbed(theta, 0.5, HERE, dtype=dtype)
    cpu.perturb(theta, theta, 0.5, HERE)
    assert same_bits(theta, expected)


def test_a_slice_is_perturbed_like_the_whole() -> None:
    theta, whole, parts = weights("float32", 5000), empty("bfloat16", 5000), empty("bfloat16", 5000)
    cpu.perturb(whole, theta, 0.01, HERE, 7)
    for low, high in ((0, 1), (1, 1500), (1500, 1501), (1501, 4999), (4999, 5000)):
        cpu.perturb(parts[low:high], theta[low:high], 0.01, HERE, 7 + low)
    assert same_bits(parts, whole)


# ------------------------------------------------------------------------------------------------ gaussian updates


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("count", "start"), [(0, 0), (1, 5), (100, 5), (5000, 2**31 - 3000), (9001, 2**40 + 1), (BIG // 4, 3)]
)
def test_a_gaussian_update_adds_in_the_written_order(threads: int, dtype: str, count: int, start: int) -> None:
    theta, anchor = weights(dtype, count), weights(dtype, count, seed=1)
    expected = references.updated(theta, KEY, SEVERAL, anchor=anchor, start=start)
    cpu.update_gaussian(theta, KEY, SEVERAL, anchor=anchor, start=start)
    assert same_bits(theta, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_updates_together_are_the_updates_in_turn(dtype: str) -> None:
    together, in_turn, anchor = weights(dtype, 9000), weights(dtype, 9000), weights("float32", 9000, seed=1)
    cpu.update_gaussian(together, KEY, SEVERAL, anchor=anchor)
    for update in SEVERAL:
        cpu.update_gaussian(in_turn, KEY, [update], anchor=anchor)
    assert same_bits(together, in_turn)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(1,), (64, 4096), (4097, 4099), (3, 5, 8191)])
def test_a_gaussian_update_in_pieces_is_the_update(dtype: str, cuts: tuple[int, ...]) -> None:
    whole, parts, anchor = weights(dtype, 9000), weights(dtype, 9000), weights(dtype, 9000, seed=1)
    cpu.update_gaussian(whole, KEY, SEVERAL, anchor=anchor)
    for low, high in zip((0, *cuts), (*cuts, 9000), strict=True):
        cpu.update_gaussian(parts[low:high], KEY, SEVERAL, anchor=anchor[low:high], start=low)
    assert same_bits(parts, whole)


# ------------------------------------------------------------------------------------------------ low-rank updates


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 1030), (300, 513)])
def test_a_lowrank_update_adds_in_the_written_order(
    threads: int, dtype: str, rank: int, shape: tuple[int, int]
) -> None:
    theta, anchor = weights(dtype, *shape), weights(dtype, *shape, seed=1)
    expected = references.updated(theta, KEY, SEVERAL, rank=rank, anchor=anchor)
    cpu.update_lowrank(theta, KEY, SEVERAL, rank=rank, anchor=anchor)
    assert same_bits(theta, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lowrank_update_of_a_shard_is_the_shard_of_the_update(dtype: str) -> None:
    whole, anchor = weights(dtype, 40, 90), weights("float32", 40, 90, seed=1)
    shard, base = whole[10:30, 33:80].copy(), anchor[10:30, 33:80].copy()
    cpu.update_lowrank(whole, KEY, SEVERAL, rank=2, anchor=anchor)
    cpu.update_lowrank(shard, KEY, SEVERAL, rank=2, shape=(40, 90), row_start=10, col_start=33, anchor=base)
    assert same_bits(shard, whole[10:30, 33:80].copy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shard_of_a_huge_tensor_is_addressed_like_in_the_reference(dtype: str) -> None:
    shape, corner = (2**25, 2**20 + 3), (2**24 + 7, 2**20 - 60)
    theta = weights(dtype, 9, 61)
    expected = references.updated(theta, KEY, SEVERAL[:2], shape=shape, rank=2, corner=corner)
    cpu.update_lowrank(theta, KEY, SEVERAL[:2], rank=2, shape=shape, row_start=corner[0], col_start=corner[1])
    assert same_bits(theta, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_factors_at_a_time_give_the_same_bits(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, anchor = weights(dtype, 50, 30), weights(dtype, 50, 30, seed=1)
    banded, in_turn = at_once.copy(), at_once.copy()
    cpu.update_lowrank(at_once, KEY, SEVERAL, rank=2, anchor=anchor)
    for update in SEVERAL:
        cpu.update_lowrank(in_turn, KEY, [update], rank=2, anchor=anchor)
    monkeypatch.setattr(cpu, "FACTORS", 200)
    cpu.update_lowrank(banded, KEY, SEVERAL, rank=2, anchor=anchor)
    assert same_bits(banded, at_once)
    assert same_bits(in_turn, at_once)


# ------------------------------------------------------------------------------------------------ rounding and decay


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_without_terms_and_decay_change_nothing(dtype: str) -> None:
    theta = weights(dtype, 40, 60)
    before = theta.copy()
    cpu.update_gaussian(theta.reshape(-1), KEY, [Update(1, ()), Update(2, ())])
    cpu.update_lowrank(theta, KEY, [Update(1, ()), Update(2, ())], rank=1)
    assert same_bits(theta, before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_kind_of_number_is_rounded_as_in_the_reference(dtype: str) -> None:
    theta = np.arange(1 << 16, dtype=np.uint16).view(rounding.ARRAYS[dtype])
    number = np.isfinite(rounding.widen(theta))
    for scale in (1e-7, 1e-3, 1e38 if dtype == "bfloat16" else 1e4):
        found = theta.copy()
        with np.errstate(over="ignore", invalid="ignore"):
            expected = references.updated(theta, KEY, [an_update(3, 1, scale=scale)])
        cpu.update_gaussian(found, KEY, [an_update(3, 1, scale=scale)])
        assert same_bits(found[number], expected[number])
        assert (np.isnan(rounding.widen(found)) == np.isnan(rounding.widen(theta))).all()


def test_a_full_decay_goes_back_to_the_anchor() -> None:
    theta, anchor = weights("float32", 1000), weights("bfloat16", 1000, seed=1)
    cpu.update_gaussian(theta, KEY, [Update(1, (), Decay(l2=1.0))], anchor=anchor)
    assert (theta == rounding.widen(anchor)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base", DTYPES)
def test_an_anchor_may_have_any_type(dtype: str, base: str) -> None:
    theta, anchor = weights(dtype, 30, 40), weights(base, 30, 40, seed=1)
    expected = references.updated(theta, KEY, SEVERAL, rank=1, anchor=anchor)
    cpu.update_lowrank(theta, KEY, SEVERAL, rank=1, anchor=anchor)
    assert same_bits(theta, expected)


def test_500_small_updates_in_bfloat16_go_where_float32_goes_and_nearest_rounding_does_not() -> None:
    count, updates = 200_000, [an_update(g, 2, scale=1e-5) for g in range(1, 501)]
    base = np.random.default_rng(0).standard_normal(count, dtype=np.float32) * np.float32(0.02)
    exact = rounding.widen(rounding.nearest(base, "bfloat16")).copy()
    start, halves = exact.copy(), rounding.nearest(exact, "bfloat16")
    nearest = halves.copy()
    cpu.update_gaussian(exact, KEY, updates)
    cpu.update_gaussian(halves, KEY, updates)
    for update in updates:
        moved = rounding.widen(nearest)
        cpu.update_gaussian(moved, KEY, [update])
        nearest = rounding.nearest(moved, "bfloat16")
    goal = (exact - start).astype(np.float64)
    along = [float((rounding.widen(one) - start) @ goal / (goal @ goal)) for one in (halves, nearest)]
    assert abs(along[0] - 1) < 0.02
    assert along[1] < 0.5


# ------------------------------------------------------------------------------------------------ errors

ONE = (Update(1, (Term(1, 0, 0.1),)),)
DECAYED = (Update(1, (), Decay(0.1)),)


def single(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


WRONG: dict[str, tuple[str, Callable[[], object]]] = {
    "sizes": ("of one size", lambda: cpu.perturb(single(3), single(4), 1.0, HERE)),
    "types": ("cannot go into", lambda: cpu.perturb(single(3), np.ones(3, np.uint16), 1.0, HERE)),
    "double": ("must be a C-contiguous", lambda: cpu.perturb(np.ones(3), single(3), 1.0, HERE)),
    "range": ("element range", lambda: cpu.update_gaussian(single(3), KEY, ONE, start=2**59 - 2)),
    "strided": ("strided", lambda: cpu.update_gaussian(single(6)[::2], KEY, ONE)),
    "slice": ("does not lie inside", lambda: cpu.update_lowrank(single(3, 3), KEY, ONE, rank=1, shape=(4, 2))),
    "anchor": ("needs an anchor", lambda: cpu.update_gaussian(single(3), KEY, DECAYED)),
    "shape": ("needs an anchor", lambda: cpu.update_gaussian(single(3), KEY, DECAYED, anchor=single(4))),
    "pair": ("pairs from", lambda: cpu.update_gaussian(single(3), KEY, [Update(1, (Term(1, 2**32, 0.1),))])),
    "moment": ("generations from", lambda: cpu.update_gaussian(single(3), KEY, [Update(-1, ONE[0].terms)])),
}


@pytest.mark.parametrize(("message", "call"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_refused_by_name(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_chunks_of_an_update_hold_the_codes_of_their_elements() -> None:
    assert compiled.CHUNK % compiled.ELEMENTS == compiled.TILE % compiled.ELEMENTS == 0
