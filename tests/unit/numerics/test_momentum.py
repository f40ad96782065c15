"""A step by first and second moments, rebuilt from seeds: the formula in float64, and the bits in float32."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from references import DTYPES, an_update, same_bits
from references import weights as numbers
from seedtune.numerics import noise, rounding, weights
from seedtune.numerics.noise import Address, Noise, Stream
from seedtune.numerics.weights import Centre
from seedtune.types import Decay, Moments, Term, Update

NOISES = [Noise(7, "gaussian"), Noise(7, rank=2), Noise(7, "gaussian", subspaces=3), Noise(7, rank=3, subspaces=2)]
SHAPE = (30, 40)


def terms_of(generation: int) -> tuple[Term, ...]:
    rng = np.random.default_rng(generation)
    return tuple(Term(generation, pair, float(rng.standard_normal() / 8)) for pair in range(6))


def an_adam(generation: int, *, window: int = 4, decay: Decay | None = None, **changes: float) -> Update:
    past = tuple(terms_of(g) for g in range(max(0, generation - window + 1), generation))
    moments = Moments(**{"beta1": 0.9, "beta2": 0.98, "epsilon": 1e-8, "alpha": 0.01, **changes}, past=past)
    return Update(generation, terms_of(generation), decay, moments)


def dense(how: Noise, term: Term, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """The noise of a term in float64."""
    address = Address(noise.key(7, "w"), Stream.FULL, term.generation, term.pair)
    if how.perturbation == "gaussian":
        own = noise.in_subspace(address, 0, math.prod(shape), subspaces=how.subspaces)
        drawn = noise.normals(address, 0, own.size).astype(np.float64) * own
        return drawn.reshape(shape) * math.sqrt(how.subspaces)
    a, b = noise.factors(address, shape, rank=how.rank, subspaces=how.subspaces)
    return a.astype(np.float64) @ b.T.astype(np.float64) * math.sqrt(how.subspaces / how.rank)


def adam(how: Noise, update: Update) -> np.ndarray:
    """The step as the paper has it (Kingma and Ba, algorithm 1), uphill, in float64."""
    moments = update.moments
    m, v, count = np.zeros(SHAPE), np.zeros(SHAPE), 0
    for terms in (*moments.past, update.terms):
        g = sum((term.weight * dense(how, term) for term in terms), np.zeros(SHAPE))
        m = moments.beta1 * m + (1 - moments.beta1) * g
        v = moments.beta2 * v + (1 - moments.beta2) * g**2
        count += 1
    m_hat, v_hat = m / (1 - moments.beta1**count), v / (1 - moments.beta2**count)
    return moments.alpha * m_hat / (np.sqrt(v_hat) + moments.epsilon)


def centre_of(how: Noise, array: np.ndarray, **more: Any) -> Centre:
    return Centre({"w": array.copy()}, how, **more)


def single(value: float) -> np.float32:
    return np.float32(value)


def stepped(how: Noise, theta: np.ndarray, update: Update) -> np.ndarray:
    """The same in float32, each product and each sum rounded, rounded into theta's type as any update."""
    moments, m, v = update.moments, np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    b1, c1, b2, c2 = (single(x) for x in (moments.beta1, 1 - moments.beta1, moments.beta2, 1 - moments.beta2))
    for terms in (*moments.past, update.terms):
        buffer = centre_of(how, np.zeros(SHAPE, np.float32))
        buffer.apply(Update(0, terms))
        g = buffer.tensors["w"]
        m = b1 * m + c1 * g
        v = b2 * v + (c2 * g) * g
    count = len(moments.past) + 1
    a, c = single(moments.alpha / (1 - moments.beta1**count)), single(1 / (1 - moments.beta2**count))
    x = rounding.widen(theta) + (a * m) / (np.sqrt(c * v) + single(moments.epsilon))
    codes = noise.codes(Address(noise.key(7, "w"), Stream.ROUNDING, update.generation), 0, theta.size)
    return rounding.stochastic(x.reshape(-1), codes, rounding.dtype_of(theta)).reshape(SHAPE)


@pytest.mark.parametrize("how", NOISES, ids=str)
@pytest.mark.parametrize("window", [1, 4])
def test_a_step_is_adams_to_a_millionth(how: Noise, window: int) -> None:
    centre, update = centre_of(how, np.zeros(SHAPE, np.float32)), an_adam(5, window=window)
    centre.apply(update)
    found, expected = centre.tensors["w"].astype(np.float64), adam(how, update)
    assert np.linalg.norm(expected) > 0.1
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("how", NOISES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("band", [1 << 20, 100, 1])
def test_a_step_has_the_bits_of_float32_in_the_written_order_whatever_the_bands(
    how: Noise, dtype: str, band: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "BAND", band)
    theta, update = numbers(dtype, *SHAPE), an_adam(5)
    centre = centre_of(how, theta)
    centre.apply(update)
    assert same_bits(centre.tensors["w"], stepped(how, theta, update))


@pytest.mark.parametrize("how", NOISES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_and_sums_in_one_batch_are_those_in_turn(how: Noise, dtype: str) -> None:
    updates = (an_update(1, 3), an_update(2, 2), an_adam(3), an_adam(4, decay=Decay(0.1, 0.001)), an_update(5, 1))
    theta, anchor = numbers(dtype, *SHAPE), numbers(dtype, *SHAPE, seed=1)
    together, in_turn = (centre_of(how, theta, anchor=lambda name: anchor) for _ in range(2))
    together.apply(*updates)
    for update in updates:
        in_turn.apply(update)
    assert together.fingerprint() == in_turn.fingerprint()


def test_a_decay_pulls_after_the_step() -> None:
    how, theta, anchor = NOISES[0], numbers("float32", *SHAPE), numbers("float32", *SHAPE, seed=1)
    centre, moved = centre_of(how, theta, anchor=lambda name: anchor), centre_of(how, theta)
    centre.apply(an_adam(5, decay=Decay(l2=0.25)))
    moved.apply(an_adam(5))
    expected = anchor + np.float32(0.75) * (moved.tensors["w"] - anchor)
    assert same_bits(centre.tensors["w"], expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_tensor_moves_like_its_rows(dtype: str) -> None:
    theta, update = numbers(dtype, 700, 513), an_adam(5)
    whole, expected = centre_of(NOISES[1], theta), theta.copy()
    whole.apply(update)
    step = Centre({"w": np.zeros((700, 513), np.float32)}, NOISES[1])
    step.apply(update)
    codes = noise.codes(Address(noise.key(7, "w"), Stream.ROUNDING, 5), 0, theta.size)
    x = rounding.widen(expected) + step.tensors["w"]
    assert same_bits(whole.tensors["w"].reshape(-1), rounding.stochastic(x.reshape(-1), codes, dtype))


def test_a_step_without_any_terms_changes_nothing_not_even_negative_zeros() -> None:
    theta = numbers("float32", *SHAPE)
    centre = centre_of(NOISES[0], theta)
    centre.apply(Update(3, (), None, Moments(0.9, 0.99, 1e-8, 0.1, past=((), ()))))
    assert same_bits(centre.tensors["w"], theta)


def test_a_generation_that_learnt_nothing_goes_on_with_the_moments_it_has() -> None:
    centre = centre_of(NOISES[0], np.zeros(SHAPE, np.float32))
    update = Update(6, (), None, Moments(0.9, 0.98, 1e-8, 0.01, past=(terms_of(5),)))
    centre.apply(update)
    assert np.linalg.norm(centre.tensors["w"] - adam(NOISES[0], update)) < 1e-6
    assert np.linalg.norm(centre.tensors["w"]) > 0.1


def test_no_dimension_and_no_element_are_tensors_too() -> None:
    tensors = {"w": np.ones((), np.float32), "e": np.ones((0, 3), np.float32), "c": np.ones((2, 3, 4), np.float32)}
    centre = Centre(tensors, NOISES[0])
    centre.apply(an_adam(5))
    assert (centre.tensors["c"] != 1).all()
    assert centre.tensors["w"] != 1


@pytest.mark.parametrize("wrong", [{"beta1": 1.0}, {"beta2": -0.1}, {"epsilon": 0.0}], ids=str)
def test_moments_that_cannot_be_divided_by_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"moments need betas in \[0, 1\) and epsilon above 0"):
        centre_of(NOISES[0], np.zeros(SHAPE, np.float32)).apply(an_adam(5, **wrong))
