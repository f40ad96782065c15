"""How far updates go, and which way: the measures of weights against dense noise in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from seedtune.numerics import noise, weights
from seedtune.numerics.noise import Noise
from seedtune.numerics.rounding import nearest, widen
from seedtune.numerics.weights import Weights
from seedtune.types import Decay, Shift, Term, Update

ONE = (Term(1, 0, 0.1), Term(0, 2, -0.2), Term(1, 7, 0.05))
OTHER = (Term(1, 0, 0.3), Term(4, 1, 0.1))
MATRICES = {"w": (60, 300), "v": (5, 5000)}
SHAPES = {"lowrank": MATRICES, "flipout": MATRICES, "gaussian": {"w": (90, 100), "b": (9,), "e": (2, 3, 4), "s": ()}}
DTYPES = ("float32", "bfloat16", "float16")


def weights_of(perturbation: str, dtype: str = "float32", rank: int = 2) -> Weights:
    """Random weights that are their own base."""
    base = {}
    for name, shape in SHAPES[perturbation].items():
        drawn = noise.normals(noise.Address(noise.key(1, name)), 0, int(np.prod(shape)))
        base[name] = nearest(drawn, dtype).reshape(shape)
    kept = "float32" if dtype == "float32" else "model"
    scheme = Noise(7, perturbation, rank, weights_dtype=kept, shared_noise=2)
    return Weights({name: array.copy() for name, array in base.items()}, scheme, anchor=base.__getitem__)


def dense(current: Weights, terms: tuple[Term, ...]) -> dict[str, np.ndarray]:
    """Σ weight·ε of every tensor, float64."""
    total = {name: np.zeros(array.shape) for name, array in current.tensors.items()}
    for term in terms:
        for name, array in total.items():
            address = noise.Address(current.keys[name], generation=term.generation, pair=term.pair)
            if current.noise.perturbation == "gaussian":
                array += term.weight * noise.normals(address, 0, array.size).reshape(array.shape)
            elif current.noise.perturbation == "flipout":
                array += term.weight * noise.flipout(address, array.shape, shared_noise=current.noise.shared_noise)
            else:
                a, b = (f.astype(np.float64) for f in noise.factors(address, array.shape, rank=current.noise.rank))
                array += term.weight * (a @ b.T) / current.noise.rank**0.5
    return total


def flat(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()])


@pytest.mark.parametrize("perturbation", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_norm_is_that_of_the_dense_sum(perturbation: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    current = weights_of(perturbation, dtype)
    expected = float(np.linalg.norm(flat(dense(current, ONE))))
    assert current.norm(ONE) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(weights, "PIECE", 7)
    assert current.norm(ONE) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("perturbation", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_drift_is_the_distance_to_the_base(perturbation: str, dtype: str) -> None:
    current = weights_of(perturbation, dtype)
    before = {name: widen(array).astype(np.float64) for name, array in current.tensors.items()}
    current.apply(Update(1, ONE), Update(2, OTHER, Decay(l2=0.1)))
    way = flat({name: widen(array) - before[name] for name, array in current.tensors.items()})
    assert current.drift() == pytest.approx(float(np.linalg.norm(way)), rel=1e-12)


@pytest.mark.parametrize("perturbation", SHAPES)
def test_the_cosine_is_that_of_the_beginnings_of_the_dense_sums(perturbation: str) -> None:
    current = weights_of(perturbation)
    rows = {"w": 4096 // 300, "v": 1}
    starts = []
    for terms in (ONE, OTHER):
        whole = dense(current, terms)
        cut = {n: a[: rows[n]] if perturbation != "gaussian" else a.ravel()[:4096] for n, a in whole.items()}
        starts.append(flat(cut))
    expected = starts[0] @ starts[1] / np.linalg.norm(starts[0]) / np.linalg.norm(starts[1])
    assert abs(expected) > 0.1
    assert current.cosine(ONE, OTHER) == pytest.approx(float(expected), abs=1e-6)


def test_a_cosine_is_seen_in_some_of_many_tensors() -> None:
    tensors = {f"w{index}": np.zeros((30, 40), np.float32) for index in range(100)}
    current = Weights(tensors, Noise(7, "gaussian"))
    whole = [flat(dense(current, terms)) for terms in (ONE, OTHER)]
    expected = whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1])
    some = [flat(dict(list(dense(current, terms).items())[::3])) for terms in (ONE, OTHER)]
    seen = current.cosine(ONE, OTHER)
    assert seen == pytest.approx(float(some[0] @ some[1] / np.linalg.norm(some[0]) / np.linalg.norm(some[1])), abs=1e-6)
    assert seen == pytest.approx(float(expected), abs=0.02)


@pytest.mark.parametrize("perturbation", SHAPES)
def test_a_step_has_the_length_it_was_given(perturbation: str) -> None:
    current = weights_of(perturbation)
    step = current.step(Shift(ONE, 2.5))
    assert step is not None
    assert step.generation == 1
    assert float(np.linalg.norm(flat(dense(current, step.terms)))) == pytest.approx(2.5, rel=1e-6)
    assert current.step(Shift(ONE)) == Update(1, ONE)
    assert current.step(Shift((), 1.0)) is None is current.step(None)


def test_weights_without_base_weights_have_no_drift_and_no_decay() -> None:
    current = Weights({"w": np.ones((2, 2), np.float32)}, Noise(7))
    for ask in (current.drift, lambda: current.apply(Update(0, (), Decay(l2=0.1)))):
        with pytest.raises(ValueError, match="needs the base weights"):
            ask()
