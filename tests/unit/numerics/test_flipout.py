"""Flipout noise: pairs that share normals and differ in signs are N(0, 1), and uncorrelated with one another."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from references import an_update, same_bits, updated, weights
from seedtune.numerics import noise, rounding
from seedtune.numerics.kernels import cpu
from seedtune.numerics.noise import Address, Noise, Stream
from seedtune.numerics.slices import Run, Slice
from seedtune.numerics.weights import Weights, signs
from seedtune.types import Decay, Member, Update

KEY = noise.key(42, "model.layers.0.mlp.up_proj.weight")
OTHER = noise.key(42, "model.layers.1.mlp.up_proj.weight")
HERE = Address(KEY, Stream.GAUSSIAN, generation=7, pair=3)
SHAPE = (300, 700)
GOLDEN = [
    [-1.1662577390670776, 0.2692160904407501, 1.0976685285568237],
    [0.3738599121570587, 0.8141336441040039, 0.3575432598590851],
]
SEVERAL = (an_update(3, 5), Update(4, ()), an_update(5, 7, decay=Decay(l2=0.01)), an_update(6, 1))


def test_a_sign_is_that_of_the_normal() -> None:
    for stream in (Stream.FACTOR_A, Stream.FACTOR_B):
        address = Address(KEY, stream, 7, 3)
        codes = noise.codes(address, 5, 1000)
        assert (noise.signs(address, 5, 1000) == np.where(codes >= 32768, 1, -1)).all()


def test_a_member_is_the_shared_normals_with_signs_of_rows_and_columns() -> None:
    shared = noise.normals(Address(KEY, 7, generation=7, pair=1), 0, math.prod(SHAPE)).reshape(SHAPE)
    r, s = (noise.signs(Address(KEY, stream, 7, 3), 0, n) for stream, n in zip((1, 2), SHAPE, strict=True))
    assert (noise.flipout(HERE, SHAPE, shared_noise=2) == shared * np.outer(r, s)).all()


def test_the_first_numbers_are_golden() -> None:
    found = noise.flipout(HERE, (2, 3), shared_noise=2)
    np.testing.assert_array_equal(found, np.array(GOLDEN, np.float32))


def test_a_slice_is_the_slice_of_the_whole() -> None:
    cut = {"row": slice(17, 90), "col": slice(11, 123)}
    assert same_bits(noise.flipout(HERE, SHAPE, **cut), noise.flipout(HERE, SHAPE)[17:90, 11:123].copy())


@pytest.mark.parametrize("shared_noise", [0, -1, 2**32 + 1])
def test_impossible_numbers_of_shared_normals_are_refused(shared_noise: int) -> None:
    with pytest.raises(ValueError, match="shared noise - 1 is"):
        noise.flipout(HERE, SHAPE, shared_noise=shared_noise)
    with pytest.raises(ValueError, match="shared_noise is"):
        cpu.update_flipout(np.ones((2, 2), np.float32), KEY, SEVERAL[:1], shared_noise=shared_noise)


def test_elements_are_normal_and_members_tensors_and_generations_uncorrelated() -> None:
    """Each within five standard deviations of what independent N(0, 1) numbers give."""
    addresses = [Address(key, 0, g, p) for key in (KEY, OTHER) for g in (7, 8) for p in (0, 1, 2, 3)]
    drawn = [noise.flipout(address, SHAPE, shared_noise=2).astype(np.float64).ravel() for address in addresses]
    bound = 5 / math.sqrt(math.prod(SHAPE))
    for one in drawn:
        assert abs(one.mean()) < bound
        assert abs((one**2).mean() - 1) < math.sqrt(2) * bound
        assert abs((one**3).mean()) < math.sqrt(15) * bound
        assert abs((one**4).mean() - 2.9992) < math.sqrt(96) * bound
    for one, other in combinations(drawn, 2):
        assert abs((one * other).mean()) < math.sqrt(3) * bound  # of one U: Σ U²·signs, of variance 3 an element


def test_elements_of_a_row_or_column_are_uncorrelated() -> None:
    drawn = noise.flipout(HERE, SHAPE).astype(np.float64)
    bound = 5 / math.sqrt(math.prod(SHAPE))
    for lag in (1, 2, 8, 64):
        assert abs((drawn[:, lag:] * drawn[:, :-lag]).mean()) < bound * 1.1
        assert abs((drawn[lag:] * drawn[:-lag]).mean()) < bound * 1.2


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (17, 1030), (300, 1200)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_update_has_the_bits_of_the_reference(shape: tuple[int, int], dtype: str) -> None:
    theta, anchor = weights(dtype, *shape), weights("float32", *shape, seed=1)
    expected = updated(theta, KEY, SEVERAL, shared_noise=2, anchor=anchor)
    cpu.update_flipout(theta, KEY, SEVERAL, shared_noise=2, anchor=anchor)
    assert same_bits(theta, expected)


def test_updates_and_few_signs_at_a_time_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, anchor = weights("bfloat16", 50, 30), weights("bfloat16", 50, 30, seed=1)
    banded, in_turn = at_once.copy(), at_once.copy()
    cpu.update_flipout(at_once, KEY, SEVERAL, shared_noise=3, anchor=anchor)
    for update in SEVERAL:
        cpu.update_flipout(in_turn, KEY, [update], shared_noise=3, anchor=anchor)
    monkeypatch.setattr(cpu, "FACTORS", 100)
    cpu.update_flipout(banded, KEY, SEVERAL, shared_noise=3, anchor=anchor)
    assert same_bits(in_turn, at_once)
    assert same_bits(banded, at_once)


def current(array: np.ndarray, own: Slice | None = None, *, perturbation: str = "flipout") -> Weights:
    scheme = Noise(42, perturbation, shared_noise=2)
    return Weights({"w": array}, scheme, slices=None if own is None else {"w": own})


@pytest.mark.parametrize("columns", [Run(0, 90, 90), Run(33, 80, 90)])
def test_a_ranks_slice_moves_and_is_perturbed_like_the_whole(columns: Run) -> None:
    whole = weights("bfloat16", 40, 90)
    own = Slice(Run(10, 30, 40), columns)
    part = own.of(whole).copy()
    pieces = [current(whole), current(part, own)]
    outs = [np.empty(one.tensors["w"].shape, np.uint16) for one in pieces]
    for one, out in zip(pieces, outs, strict=True):
        one.perturb("w", Member(3, 4, -1), 0.1, out)
        one.apply(SEVERAL[0])
    assert same_bits(own.of(whole).copy(), part)
    assert same_bits(own.of(outs[0]).copy(), outs[1])


@pytest.mark.parametrize("perturbation", ["flipout", "lowrank"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_member_is_the_rounded_sum(perturbation: str, dtype: str) -> None:
    theta, member = weights(dtype, 20, 30), Member(3, 4, -1)
    one, out = current(theta, perturbation=perturbation), np.empty((20, 30), rounding.ARRAYS[dtype])
    address = Address(one.keys["w"], 0, 3, 4)
    drawn = noise.flipout(address, (20, 30), shared_noise=2)
    if perturbation == "lowrank":
        a, b = noise.factors(address, (20, 30))
        drawn = a @ b.T
    one.perturb("w", member, 0.01, out)
    if perturbation == "flipout":
        exact = rounding.widen(theta) + np.float32(-0.01) * drawn
        assert same_bits(out.ravel(), rounding.nearest(exact.ravel(), dtype))
    np.testing.assert_allclose(rounding.widen(out), rounding.widen(theta) - 0.01 * drawn, rtol=0.01, atol=1e-3)
    one.perturb("w", member, 0.0, out)
    assert same_bits(out, theta)


def test_signs_and_shared_normals_make_the_member() -> None:
    one = current(weights("float32", 20, 30))
    r, s = signs(one, "w", [(3, 4), (2, 1)])
    for place, (generation, pair) in enumerate([(3, 4), (2, 1)]):
        expected = noise.flipout(Address(one.keys["w"], 0, generation, pair), (20, 30), shared_noise=2)
        assert same_bits(one.shared("w", generation, pair) * np.outer(r[place], s[place]), expected)
