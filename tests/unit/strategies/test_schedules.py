"""Schedules against their formulas, at their ends, and what must hold for any of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seedtune.config.config import Config
from seedtune.config.sections import ScheduleSettings
from seedtune.errors import ConfigError
from seedtune.strategies.schedules import factor

LINEAR = ScheduleSettings(kind="linear", over=40, to=0.2)
COSINE = ScheduleSettings(kind="cosine", over=40, to=0.2)
ALL = [ScheduleSettings(), LINEAR, COSINE, ScheduleSettings(kind="linear", over=5, to=3.0, warmup=4)]


def curve(settings: ScheduleSettings, count: int) -> np.ndarray:
    return np.array([factor(settings, g) for g in range(count)])


def test_a_constant_is_the_first_value_bit_for_bit():
    assert set(curve(ScheduleSettings(), 5)) == {1.0}


@pytest.mark.parametrize(
    ("settings", "plain"),
    [
        (LINEAR, np.interp(np.arange(60), [0, 40], [1.0, 0.2])),
        (COSINE, 0.2 + 0.8 * np.cos(np.pi / 2 * np.minimum(np.arange(60), 40) / 40) ** 2),
    ],
    ids=["linear", "cosine"],
)
def test_the_values_are_those_of_the_formula(settings, plain):
    np.testing.assert_allclose(curve(settings, 60), plain, rtol=1e-11)


@pytest.mark.parametrize("settings", [LINEAR, COSINE], ids=["linear", "cosine"])
def test_a_decay_begins_at_the_first_value_and_ends_at_its_share(settings):
    made = curve(settings, 100)
    assert made[0] == 1.0
    assert set(made[40:]) == {0.2}
    assert (np.diff(made[:41]) < 0).all()


def test_warm_up_rises_linearly_from_above_zero_and_takes_that_many_generations():
    made = curve(ScheduleSettings(warmup=3), 6)
    np.testing.assert_allclose(made, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_warm_up_multiplies_the_schedule():
    settings = ScheduleSettings(kind="linear", over=2, to=0.5, warmup=1)
    made = [factor(settings, g) for g in range(3)]
    assert made == [0.5, 0.75, 0.5]


@pytest.mark.parametrize("settings", ALL, ids=str)
@given(generation=st.integers(0, 10**6))
def test_values_are_finite_never_negative_and_the_same_when_asked_again(settings, generation):
    made = factor(settings, generation)
    assert math.isfinite(made)
    assert made >= 0.0
    assert made == factor(settings, generation)


def test_the_last_bits_of_a_cosine_are_rounded_away():
    made = curve(COSINE, 41)
    assert all(made == [float(f"{factor:.12g}") for factor in made])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "linear"}, "kind=linear needs over: give the number of generations"),
        ({"kind": "cosine"}, "kind=cosine needs over: give the number of generations"),
        ({"over": 10}, "over=10 means nothing with kind=constant"),
        ({"to": 0.5}, "to=0.5 means nothing with kind=constant"),
        ({"kind": "linear", "over": 0}, "over=0: must be greater than or equal to 1"),
        ({"kind": "linear", "over": 5, "to": 0}, "to=0: must be greater than 0"),
        ({"kind": "exponential"}, "kind='exponential': must be 'constant', 'linear' or 'cosine'"),
        ({"overr": 5}, "unknown setting 'sigma_schedule.overr'. Did you mean 'over'?"),
    ],
    ids=str,
)
def test_a_schedule_that_is_not_one_says_why_and_what_to_give(settings, message):
    with pytest.raises(ConfigError, match=r"sigma_schedule") as caught:
        Config.create({"sigma_schedule": settings})
    assert message in str(caught.value)


def test_schedules_are_part_of_a_runs_identity():
    for name in ("sigma_schedule", "alpha_schedule"):
        changed = Config.create({name: {"kind": "cosine", "over": 5}})
        assert changed.identity() != Config().identity()
        assert changed.replace(generations=3) == Config.create({**changed.model_dump(), "generations": 3})
