"""The second-order model of a probe: its parts are measured, and the step it advises gains what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from seedtune.errors import RewardError
from seedtune.strategies.quadratic_model import Law, Response, best_stride, fit, positive_mean, response_of

D, J, PAIRS = 400, 6, 400
NAN = math.nan


class Quadratic:
    """R_j(δ) = g_j·δ − h|δ|²/2, where the g_j of the prompts share a common part."""

    def __init__(self, own: float, curvature: float) -> None:
        rng = np.random.default_rng(0)
        self.common = rng.standard_normal(D) / math.sqrt(D)
        self.gradients = self.common + own * rng.standard_normal((J, D)) / math.sqrt(D)
        self.h = curvature

    def scores(self, shifts: np.ndarray) -> np.ndarray:
        return shifts @ self.gradients.T - self.h / 2 * (shifts**2).sum(axis=1, keepdims=True)

    def elsewhere(self, shift: np.ndarray) -> float:
        """The reward on prompts that no member has seen."""
        return float(self.common @ shift - self.h / 2 * shift @ shift)


def directions(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, D))


def observe(model: Quadratic, sigma: float, noise: np.ndarray) -> Response:
    both = np.stack([noise, -noise], axis=1).reshape(-1, D)
    return response_of(sigma, model.scores(np.vstack([np.zeros((1, D)), sigma * both])))


def test_the_parts_of_a_quadratic_reward_are_measured():
    model, sigma = Quadratic(own=0.5, curvature=0.2), 0.1
    found = observe(model, sigma, directions(PAIRS))
    assert found.members == 2 * PAIRS
    assert found.gap == pytest.approx(sigma**2 * model.h * D / 2, rel=0.02)
    assert found.power == pytest.approx(sigma**2 * (model.gradients.mean(axis=0) ** 2).sum(), rel=0.15)
    assert found.reliability == pytest.approx(
        (model.common**2).sum() / (model.gradients.mean(axis=0) ** 2).sum(), abs=0.1
    )


@pytest.mark.parametrize("antithetic", [True, False])
def test_the_advised_step_gains_what_is_predicted_and_no_other_gains_more(antithetic):
    model, sigma, population = Quadratic(own=1.0, curvature=0.2), 0.1, 32
    found = observe(model, sigma, directions(PAIRS))
    stride = best_stride(found, fit([found]), population=population, antithetic=antithetic)
    assert not stride.capped
    gains = {factor: gain_of(model, sigma, stride.ratio * factor, antithetic) for factor in (0.5, 1.0, 2.0)}
    assert gains[1.0] == pytest.approx(stride.gain, rel=0.25)
    assert gains[1.0] > max(gains[0.5], gains[2.0])


def gain_of(model: Quadratic, sigma: float, ratio: float, antithetic: bool, population: int = 32) -> float:
    """The mean gain of generations of z-scored updates."""
    gains = []
    for generation in range(200):
        half = directions(population // 2 if antithetic else population, 100 + generation)
        noise = np.vstack([half, -half]) if antithetic else half
        rewards = model.scores(sigma * noise).mean(axis=1)
        z = (rewards - rewards.mean()) / rewards.std()
        gains.append(model.elsewhere(ratio * sigma / population * z @ noise))
    return float(np.mean(gains))


def test_without_curvature_a_step_is_three_quarters_of_a_member():
    model, sigma, population = Quadratic(own=0.0, curvature=0.0), 0.1, 32
    found = observe(model, sigma, directions(8))
    stride = best_stride(found, Law(found.transfer / sigma**2, 0.0), population=population, antithetic=True)
    assert stride.capped
    half = directions(population // 2, 7)
    odd = sigma * half @ model.common
    update = stride.ratio * sigma / population * (2 * odd / found.spread) @ half
    assert np.linalg.norm(update) == pytest.approx(0.75 * sigma * math.sqrt(D), rel=0.5)


def test_directions_that_do_not_transfer_gain_less():
    both = np.array([[0.0, 0.0], [1.0, 1.1], [-1.0, -0.9], [2.0, 2.2], [-2.0, -2.2], [1.5, 1.4], [-1.5, -1.6]]) - 0.2
    both[0] = 0.0
    agree, part = (response_of(0.1, both * np.array([1.0, side])) for side in (1.0, -1.0))
    assert part.transfer < 0.0 == part.reliability
    strides = [best_stride(r, fit([r]), population=8, antithetic=True) for r in (agree, part)]
    assert 0.0 < strides[1].gain < strides[0].gain / 3


@pytest.mark.parametrize("value", [-35.0, -29.0, -9.0, -1.0, 0.0, 1.0, 5.0])
def test_what_is_known_to_be_positive_has_the_mean_of_its_positive_part(value):
    grid = np.linspace(1e-6, 20.0, 400_001)
    density = np.exp(-((grid - value) ** 2) / 2 + min(value, 0.0) ** 2 / 2)
    assert positive_mean(value, 1.0) == pytest.approx((grid * density).sum() / density.sum(), rel=0.03)
    assert positive_mean(3 * value, 3.0) == pytest.approx(3 * positive_mean(value, 1.0))


def test_members_that_all_tie_advise_no_step():
    found = response_of(0.1, np.ones((5, 3)))
    assert (found.spread, found.gap, found.success_rate) == (0.0, 0.0, 0.0)
    assert best_stride(found, fit([found]), population=8, antithetic=True).gain == 0.0


def test_a_smaller_sigma_predicts_no_more_where_the_reward_is_quadratic():
    model = Quadratic(own=0.5, curvature=0.02)
    small, large = (observe(model, sigma, directions(PAIRS)) for sigma in (0.01, 0.1))
    law = fit([small, large])
    gains = [best_stride(r, law, population=32, antithetic=True).gain for r in (small, large)]
    assert gains[0] <= gains[1] * 1.01


def test_a_missing_score_is_its_prompts_mean_and_a_pair_without_any_is_left_out():
    scores = np.array([[0.0, 0.0], [1.0, 4.0], [NAN, 2.0], [NAN, NAN], [3.0, 3.0]])
    found = response_of(0.1, scores)
    assert found.members == 2
    assert found.mean == pytest.approx((1.0 + 4.0 + 4 / 3 + 2.0) / 4)


def test_an_unperturbed_model_that_cannot_be_scored_is_an_error_and_members_that_cannot_are_none():
    with pytest.raises(RewardError, match="the unperturbed model's answers could not be scored on any prompt"):
        response_of(0.1, np.array([[NAN, NAN], [1.0, 1.0], [2.0, 2.0]]))
    found = response_of(0.1, np.array([[1.0, 1.0], [NAN, NAN], [2.0, 2.0]]))
    assert (found.members, found.unperturbed) == (0, 1.0)
    assert np.isnan(found.mean)
