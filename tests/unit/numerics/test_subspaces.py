"""Subspaces deal a tensor's elements (low rank: the rows of A) out to disjoint parts of equal size."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import references
from references import an_update, same_bits, weights
from seedtune.config.config import Config
from seedtune.errors import ConfigError
from seedtune.numerics import noise, rounding
from seedtune.numerics.kernels import cpu
from seedtune.numerics.noise import Address, Noise, Stream
from seedtune.numerics.weights import Weights, factors
from seedtune.types import Member, Term, Update

KEY = noise.key(42, "model.layers.0.self_attn.q_proj.weight")
HERE = Address(KEY, Stream.GAUSSIAN, generation=7, pair=3)
COUNT = 1 << 18
KS = (2, 3, 4)
SEVERAL = (an_update(3, 5), Update(4, ()), an_update(5, 7), an_update(6, 1))


# ------------------------------------------------------------------------------------------------ the partition


def test_the_partition_is_golden() -> None:
    first = [1, 3, 2, 3, 0, 1, 3, 3, 3, 1, 1, 0, 0, 0, 2, 0]
    assert noise.subspaces_of(HERE, 0, 16, subspaces=4).tolist() == first
    assert noise.subspaces_of(HERE, 2**40 + 1, 5, subspaces=65535).tolist() == [16916, 21770, 53341, 57067, 4388]


def test_a_subspace_is_the_code_of_stream_four_in_as_many_parts() -> None:
    codes = noise.codes(Address(KEY, 4, generation=7, pair=0), 5, 1000).astype(int)
    for k in (1, *KS, 1000):
        assert noise.subspaces_of(HERE, 5, 1000, subspaces=k).tolist() == [code * k // 65536 for code in codes]


def test_pairs_of_a_generation_share_its_partition_and_generations_do_not() -> None:
    one = noise.subspaces_of(HERE, 0, 4000, subspaces=4)
    assert (one == noise.subspaces_of(Address(KEY, Stream.FACTOR_B, 7, 99), 0, 4000, subspaces=4)).all()
    other = noise.subspaces_of(Address(KEY, Stream.GAUSSIAN, 8, 3), 0, 4000, subspaces=4)
    assert abs((one == other).mean() - 0.25) < 0.04


@pytest.mark.parametrize("k", KS)
def test_every_subspace_holds_its_share(k: int) -> None:
    counts = np.bincount(noise.subspaces_of(HERE, 0, COUNT, subspaces=k), minlength=k)
    assert counts.size == k
    assert (np.abs(counts - COUNT / k) < 5 * math.sqrt(COUNT / k)).all()


@pytest.mark.parametrize("subspaces", [0, -1, 1 << 16])
def test_impossible_numbers_of_subspaces_are_refused(subspaces: int) -> None:
    with pytest.raises(ValueError, match="subspaces - 1 is"):
        noise.subspaces_of(HERE, 0, 1, subspaces=subspaces)
    for call in REFUSED:
        with pytest.raises(ValueError, match=f"subspaces is {subspaces}, but it must be at least 1 and at most 65535"):
            call(subspaces)


ONE = np.zeros(1, np.uint32)
REFUSED: tuple[Callable[[int], object], ...] = (
    lambda k: cpu.perturb(np.ones(3, np.float32), np.ones(3, np.float32), 1.0, HERE, subspaces=k),
    lambda k: cpu.update_gaussian(np.ones(3, np.float32), KEY, SEVERAL, subspaces=k),
    lambda k: cpu.update_lowrank(np.ones((3, 3), np.float32), KEY, SEVERAL, rank=1, subspaces=k),
    lambda k: cpu.fill_factors(np.ones((1, 3), np.float32), KEY, 1, ONE, ONE, subspaces=k),
)


def test_half_a_row_of_a_factor_is_refused_where_rows_are_dealt() -> None:
    for count, start in ((4, 1), (3, 2)):
        with pytest.raises(ValueError, match=r"no whole rows of a factor of rank 2; give whole rows"):
            cpu.fill_factors(np.ones((1, count), np.float32), KEY, 1, ONE, ONE, start=start, rank=2, subspaces=2)


# ------------------------------------------------------------------------------------------------ perturbations


def perturbations(scheme: Noise, shape: tuple[int, int], pairs: int) -> np.ndarray:
    """E of each pair of generation 7, as weights of zeros show it: (pairs, *shape)."""
    current, drawn = Weights({"w": np.zeros(shape, np.float32)}, scheme), []
    for pair in range(pairs):
        if scheme.perturbation == "gaussian":
            out = np.empty(math.prod(shape), np.float32)
            current.perturb("w", Member(7, pair, 1), 1.0, out)
            drawn.append(out.reshape(shape))
        else:
            a, b = factors(current, "w", [(7, pair)])
            drawn.append(a[0] @ b[0].T * np.float32(noise.amplitude(1.0, rank=scheme.rank, subspaces=scheme.subspaces)))
    return np.array(drawn)


@pytest.mark.parametrize("perturbation", ["gaussian", "lowrank"])
@pytest.mark.parametrize("k", KS)
def test_pairs_of_different_subspaces_touch_disjoint_elements_and_together_all(perturbation: str, k: int) -> None:
    drawn = perturbations(Noise(1, perturbation, rank=2, subspaces=k), (60, 50), 2 * k) != 0
    assert (drawn[:k].sum(axis=0) == 1).all()
    assert (drawn[k:] == drawn[:k]).all()
    if perturbation == "lowrank":
        assert (drawn.all(axis=2) == drawn.any(axis=2)).all()  # whole rows


@pytest.mark.parametrize(("perturbation", "tolerance"), [("gaussian", 0.02), ("lowrank", 0.15)])
@pytest.mark.parametrize("k", KS)
def test_noise_in_a_subspace_has_k_times_the_variance_and_one_over_all(
    perturbation: str, tolerance: float, k: int
) -> None:
    # Of low-rank noise only (rows + columns) * rank numbers a pair are independent: 2 % each, against 0.3 %.
    drawn = perturbations(Noise(1, perturbation, rank=4, subspaces=k), (600, 500), k).astype(np.float64)
    assert abs((drawn**2).mean() - 1) < tolerance
    own = drawn[drawn != 0]
    assert abs((own**2).mean() / k - 1) < tolerance
    assert abs(own.mean()) < tolerance * math.sqrt(k)


def test_a_single_subspace_is_no_subspace() -> None:
    for scheme in (Noise(1, "gaussian"), Noise(1, rank=3)):
        one = perturbations(scheme, (9, 8), 2)
        assert (one != 0).all()
    assert noise.amplitude(0.1234567, subspaces=1) == 0.1234567
    assert noise.amplitude(0.1234567, rank=3) == 0.1234567 / math.sqrt(3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_outside_of_its_subspace_a_member_is_the_unperturbed_model_even_at_negative_zeros(dtype: str) -> None:
    current = weights("float32", 5000)
    current[::7] = -0.0
    out, whole = np.ones(5000, rounding.ARRAYS[dtype]), np.ones(5000, rounding.ARRAYS[dtype])
    cpu.perturb(out, current, 0.5, HERE, 3, subspaces=4)
    outside = ~noise.in_subspace(HERE, 3, 5000, subspaces=4)
    assert same_bits(out[outside], rounding.nearest(current, dtype)[outside])
    cpu.perturb(whole, current, 0.5 * math.sqrt(4), HERE, 3)
    assert same_bits(out[~outside], whole[~outside])


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("start", [0, 2**40 + 5])
def test_many_weights_of_a_subspace_are_perturbed_as_in_the_reference(k: int, start: int) -> None:
    count = 2 * cpu.PARALLEL_FROM + 13
    current, out = weights("float32", count), np.ones(count, np.uint16)
    cpu.perturb(out, current, 0.02, HERE, start, subspaces=k)
    expected = references.perturbed(current, 0.02, HERE, start=start, dtype="bfloat16", subspaces=k)
    assert same_bits(out, expected)


# ------------------------------------------------------------------------------------------------ updates


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cuts", [(1,), (64, 4096), (3, 20_001)])
def test_an_update_in_pieces_is_the_update(dtype: str, cuts: tuple[int, ...]) -> None:
    whole = weights(dtype, 40_000)
    parts = whole.copy()
    cpu.update_gaussian(whole, KEY, SEVERAL, subspaces=3)
    for low, high in zip((0, *cuts), (*cuts, 40_000), strict=True):
        cpu.update_gaussian(parts[low:high], KEY, SEVERAL, start=low, subspaces=3)
    assert same_bits(parts, whole)


@pytest.mark.parametrize("perturbation", ["gaussian", "lowrank"])
def test_a_big_update_has_the_bits_of_the_reference(perturbation: str) -> None:
    theta = weights("bfloat16", 300, 513)
    rank = 2 if perturbation == "lowrank" else None
    expected = references.updated(theta, KEY, SEVERAL, rank=rank, subspaces=3)
    if rank:
        cpu.update_lowrank(theta, KEY, SEVERAL, rank=rank, subspaces=3)
    else:
        cpu.update_gaussian(theta.reshape(-1), KEY, SEVERAL, subspaces=3)
    assert same_bits(theta, expected)


def test_the_order_of_generations_within_an_update_changes_no_element_of_a_single_term() -> None:
    terms = (Term(3, 0, 0.1), Term(4, 1, 0.2), Term(3, 1, -0.3), Term(4, 0, 0.4))
    theta = weights("float32", 4000)
    expected = references.updated(theta, KEY, [Update(4, terms)], subspaces=2)
    cpu.update_gaussian(theta, KEY, [Update(4, terms)], subspaces=2)
    assert same_bits(theta, expected)


def test_a_factor_of_pairs_of_many_generations_has_the_rows_of_each() -> None:
    who = [(3, 0), (3, 1), (4, 1), (3, 1)]
    generations, pairs = (np.array(column, np.uint32) for column in zip(*who, strict=True))
    out = np.ones((4, 40_000 * 2), np.float32)
    cpu.fill_factors(out, KEY, Stream.FACTOR_A, generations, pairs, start=6, rank=2, subspaces=2)
    for row, (generation, pair) in zip(out, who, strict=True):
        options = {"rank": 2, "row": slice(3, 40_003), "subspaces": 2}
        a, _ = noise.factors(Address(KEY, 0, generation, pair), (40_003, 1), **options)
        assert same_bits(row.reshape(-1, 2), a)


# ------------------------------------------------------------------------------------------------ the setting


@pytest.mark.parametrize(("population", "antithetic", "most"), [(8, True, 4), (8, False, 4), (9, False, 4)])
def test_every_subspace_needs_two_members(population: int, antithetic: bool, most: int) -> None:
    settings = {"population": population, "antithetic": antithetic}
    assert Config.create({**settings, "subspaces": most}).subspaces == most
    message = f"subspaces={most + 1} is too many for population={population}.* Use 4 or fewer, or population=10 or more"
    with pytest.raises(ConfigError, match=message):
        Config.create({**settings, "subspaces": most + 1})
    with pytest.raises(ConfigError, match="subspaces=0"):
        Config.create({"subspaces": 0})


def test_subspaces_are_part_of_a_runs_identity() -> None:
    assert Config(subspaces=2).identity()["subspaces"] == 2
    assert Config().identity()["subspaces"] == 1
