"""The rule that finds σ: it converges whatever the model's scale, and follows from its measurements alone."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.config.config import Config
from seedtune.strategies.sigma_rule import (
    BROKEN,
    CLOSE,
    LEAP,
    ROUNDS,
    START,
    TARGET,
    Measurement,
    following,
    found,
)


def searched(loss: Callable[[float], float]) -> list[Measurement]:
    """The measurements of a model whose members lose ``loss(σ)``."""
    measured: list[Measurement] = []
    while (sigma := following(measured)) is not None:
        measured.append(Measurement(sigma, float(f"{loss(sigma):.6g}")))
    return measured


def power_law(scale: float, power: float) -> Callable[[float], float]:
    """A model that reaches the target at ``scale``, and is broken far above it."""
    return lambda sigma: min(BROKEN, TARGET * (sigma / scale) ** power)


@pytest.mark.parametrize("power", [1.0, 1.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("scale", [1e-6, 2e-5, 3e-4, 1e-3, 7e-3, 0.1, 1.0, 10.0])
def test_the_loss_at_the_sigma_found_is_the_target_whatever_the_models_scale(scale, power):
    measured = searched(power_law(scale, power))
    assert len(measured) <= ROUNDS
    assert TARGET / CLOSE <= power_law(scale, power)(found(measured)) <= TARGET * CLOSE


def test_a_model_of_which_rounds_do_not_reach_the_scale_gets_what_its_square_law_says():
    assert found(searched(power_law(100.0, 2.0))) == 100.0


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.03, 0.5])
@pytest.mark.parametrize("seed", range(20))
def test_noise_of_a_fifth_leaves_the_loss_near_the_target(scale, seed):
    draw = np.random.default_rng(seed)
    measured = searched(lambda sigma: power_law(scale, 2.0)(sigma) * math.exp(draw.normal(scale=0.2)))
    assert TARGET / 3 <= power_law(scale, 2.0)(found(measured)) <= TARGET * 3


@pytest.mark.parametrize("nothing", [0.0, -0.002], ids=["zero", "negative"])
def test_a_sigma_that_changes_nothing_is_left_upwards(nothing):
    """Weights of 16 bits swallow a small perturbation, and greedy answers can become more probable by chance."""
    measured = searched(lambda sigma: nothing if sigma < 0.01 else power_law(0.05, 2.0)(sigma))
    assert [m.sigma for m in measured[:3]] == [START, START * LEAP, START * LEAP**2]
    assert found(measured) == pytest.approx(0.05, rel=0.03)


def test_a_model_that_breaks_at_once_is_left_downwards():
    measured = searched(lambda sigma: BROKEN if sigma > 1e-4 else power_law(5e-5, 2.0)(sigma))
    assert measured[1].sigma == START / LEAP
    assert TARGET / 2 <= power_law(5e-5, 2.0)(found(measured)) <= TARGET * 2


@pytest.mark.parametrize("loss", [0.0, -1.0, 1e-300, TARGET * 2, BROKEN], ids=str)
def test_a_model_of_which_nothing_can_be_learned_gets_a_sigma_that_a_run_may_have(loss):
    measured = searched(lambda sigma: loss)
    assert len(measured) == ROUNDS
    assert Config(sigma=found(measured)).sigma == found(measured)


def test_a_first_measurement_near_the_target_is_the_last():
    for factor in (1.0 / CLOSE, 1.0, CLOSE):
        measured = searched(lambda sigma, factor=factor: TARGET * factor)
        assert len(measured) == 1
        assert found(measured) == float(f"{START / math.sqrt(factor):.2g}")


def test_the_search_steps_by_a_leap_at_most():
    for scale in (1e-6, 10.0):
        sigmas = [m.sigma for m in searched(power_law(scale, 2.0))]
        ratios = [b / a for a, b in itertools.pairwise(sigmas)]
        assert all(1 / LEAP * 0.999 <= ratio <= LEAP * 1.001 for ratio in ratios)


@given(losses=st.lists(st.floats(-1.0, BROKEN), min_size=ROUNDS, max_size=ROUNDS))
def test_every_search_ends_with_two_digits_that_follow_from_the_ledgers_json(losses):
    rest = iter(losses)
    measured = searched(lambda sigma: next(rest))
    assert 1 <= len(measured) <= ROUNDS
    sigma = found(measured)
    assert sigma == float(f"{sigma:.2g}")
    assert Config(sigma=sigma).sigma == sigma
    read = [Measurement(*pair) for pair in json.loads(json.dumps(measured))]
    assert found(read) == sigma
    assert [following(read[:place]) for place in range(len(read) + 1)] == [*(m.sigma for m in read), None]
