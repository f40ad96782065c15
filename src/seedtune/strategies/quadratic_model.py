"""The response of the reward to perturbations of one size, and the best step it allows.  Pure functions of scores.

Members lie on a sphere around θ: ε = ±σε has the length σ√d.  To second order in the perturbation, with the
gradient g and the Hessian −H of the reward (mean over prompts) and pairs (+ε, −ε),

    odd part   o = (R₊ − R₋)/2 = σ g·ε         m = E[o²] = σ²|g|²
    even part  C = R(θ) − E[R] = σ² tr(H)/2    s² = Var[R] over members

With z-scored rewards the update of N members in pairs is Δ = (α/N) Σₚ (2oₚ/s) εₚ.  It gains  g·Δ = (α/σ) m/s  on the
prompts that chose it, a share κ of that on others, and loses ½ΔᵀHΔ = (C/σ²)|Δ|²/d, |Δ|² = 2α² m d/(N s²), to the
curvature if the curvature is similar in all directions.  So with x = α/σ the expected gain on other prompts is

    G(x) = x κ m/s − 2 C x² m/(N s²)           largest at  x* = κ s N/(4C)
    G(x) = x κ m/s − C x²/N                    without pairs (Δ = (α/N) Σᵢ zᵢ εᵢ), x* = κ m N/(2 C s)

and x is at most three quarters of √N, or of s√(N/(2m)) with pairs if that is less.  At the full value the step would
be as long as a member's perturbation, beyond which nothing was measured; three quarters is a margin (α = 3σ at N = 32,
the best of the settings tried on the demo).  All of this assumes many dimensions and a curvature without a preferred
direction: for a model of a few hundred weights the step may be too long.
In a true quadratic C and m grow as σ², so G(x*) is the same for every σ until the cap; a small σ is limited by the
cap, a large one by C, by saturation, and in the end by collapse.

κ is the share of m that the same direction gains on other prompts.  Over J prompts with odd parts oₚⱼ,

    T = mean over pairs p and prompts j ≠ k of oₚⱼ oₚₖ,    κ = T/m   (0 ≤ κ ≤ 1)

which is the prediction of one half of the prompts by the other, over all ways to halve them.  T and C of a single σ
are noisy (a completion is chaotic in the weights), so both are fitted to all usable σ as T = τσ² and C = cσ².  Neither
can be negative, but an estimate y ± e can: the value used is the mean of a normal (y, e) given that it is positive,

    y + e φ(y/e)/Φ(y/e)

so that an unlucky sign gives a short step instead of none, and an unmeasured curvature still counts.  Where one σ
contradicts the fit by more than its error (a reward that saturates, a region that is not quadratic), the worse value
counts: T at most T̂ + e, C at least Ĉ − e.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seedtune.errors import RewardError
from seedtune.strategies.shaping import fill_missing

Floats = NDArray[np.float64]

TINY = 1e-9
"""Lower bound of errors, as a share of the rewards' size (squared for variances): ties get no infinite weight."""

MARGIN = 0.75
"""Longest step, as a part of a member's length."""


@dataclass(frozen=True, slots=True)
class Response:
    """Response at one σ: rewards of members and unperturbed model on the same prompts (means over prompts)."""

    sigma: float
    members: int
    mean: float
    spread: float
    """s: standard deviation of the members' rewards."""
    unperturbed: float
    gap_error: float
    """Standard error of the gap, from the pairs' even parts."""
    best_gain: float
    """Best member − unperturbed."""
    success_rate: float
    """Share of members better than the unperturbed model."""
    power: float
    """m: mean square of the pairs' odd parts."""
    transfer: float
    """T: the part of m that holds on other prompts."""
    transfer_error: float
    """Its standard error, from the pairs."""
    variance: float
    """Mean square of the odd parts of single prompts."""

    @property
    def gap(self) -> float:
        """C: unperturbed − mean of the members."""
        return self.unperturbed - self.mean

    @property
    def reliability(self) -> float:
        """κ from this σ alone: T/m, limited to [0, 1]."""
        return min(1.0, max(0.0, self.transfer / self.power)) if self.power > 0 else 0.0


def response_of(sigma: float, scores: Floats) -> Response:
    """Compute the response from scores (1 + 2P, J): the unperturbed model, then the members +ε and −ε of each pair.

    Missing scores count as their prompt's mean; a pair with a member without scores is left out; without any pair there
    are no members, and numbers are NaN.  Raises RewardError if the unperturbed model has no score.
    """
    filled = fill_missing(scores)
    if filled.shape[1] == 0 or bool(np.isnan(filled[0]).any()):
        raise RewardError(
            "the unperturbed model's answers could not be scored on any prompt. Check the reward function."
        )
    pairs, unperturbed = filled[1:].reshape(-1, 2, filled.shape[1]), float(filled[0].mean())
    pairs = pairs[~np.isnan(pairs).any(axis=(1, 2))]
    if len(pairs) == 0:
        return Response(sigma, 0, math.nan, math.nan, unperturbed, *[math.nan] * 7)
    rewards = pairs.mean(axis=2)
    odd = (pairs[:, 0] - pairs[:, 1]) / 2
    even, products = rewards.mean(axis=1), crossed(odd)
    return Response(
        sigma=sigma,
        members=rewards.size,
        mean=float(rewards.mean()),
        spread=float(rewards.std()),
        unperturbed=unperturbed,
        gap_error=standard_error(even - unperturbed),
        best_gain=float(rewards.max()) - unperturbed,
        success_rate=float((rewards > unperturbed).mean()),
        power=float((odd.mean(axis=1) ** 2).mean()),
        transfer=float(products.mean()),
        transfer_error=standard_error(products),
        variance=float((odd**2).mean()),
    )


def crossed(odd: Floats) -> Floats:
    """Each noise sample's contribution to T, (samples,), from odd parts (samples, prompts), in squared units of reward.

    The mean of o_i·o_j over prompts i ≠ j.  With a single prompt there is no other to compare: the whole o² counts.
    """
    prompts = odd.shape[1]
    if prompts == 1:
        return odd[:, 0] ** 2
    products: Floats = (odd.sum(axis=1) ** 2 - (odd**2).sum(axis=1)) / (prompts * (prompts - 1))
    return products


def standard_error(values: Floats) -> float:
    """Standard error of the mean; for a single value, its absolute value."""
    if len(values) == 1:
        return float(abs(values[0]))
    return float(values.std(ddof=1) / math.sqrt(len(values)))


@dataclass(frozen=True, slots=True)
class Law:
    """T = ``transfer``·σ² and C = ``gap``·σ², as fitted to several σ; neither is negative."""

    transfer: float
    gap: float


def fit(responses: Sequence[Response]) -> Law:
    """Fit by weighted least squares over the responses; each coefficient is then taken to be positive.

    All σ share members and prompts, so their errors are treated as fully correlated: more σ stabilise the fit and do
    not count as independent.
    """
    size = max((abs(r.unperturbed) + r.spread for r in responses), default=0.0) or 1.0
    squares = np.array([r.sigma**2 for r in responses])
    transfers = np.array([(r.transfer, r.transfer_error, r.variance) for r in responses])
    gaps = np.array([(r.gap, r.gap_error, r.spread) for r in responses])
    return Law(_slope(squares, transfers, floor=TINY * size**2), _slope(squares, gaps, floor=TINY * size))


def _slope(x: Floats, measured: Floats, *, floor: float) -> float:
    """Return the positive slope of y = slope·x from rows (y, error, scale), weighted by 1/scale².

    Its standard error is that of fully correlated errors.
    """
    y, errors, scales = measured[:, 0], measured[:, 1] + floor, measured[:, 2] + floor
    pull = x / scales**2
    information = float((pull * x).sum())
    return positive_mean(float((pull * y).sum()) / information, float((pull * errors).sum()) / information)


def positive_mean(value: float, error: float) -> float:
    """Mean of a normal variable (``value``, standard error ``error``) given that it is positive."""
    a = value / error
    if a < -30:  # asymptotic expansion of the tail, before Φ underflows to 0
        return -error / a
    density = math.exp(-a * a / 2) / math.sqrt(2 * math.pi)
    return value + error * density / (0.5 * math.erfc(-a / math.sqrt(2)))


@dataclass(frozen=True, slots=True)
class Stride:
    """The best step at one σ: x = α/σ, the expected gain of a generation, κ, and whether the cap limits x."""

    ratio: float
    gain: float
    reliability: float
    capped: bool


def best_stride(response: Response, law: Law, *, population: int, antithetic: bool) -> Stride:
    """Return the x that maximises G(x), and G there; all zero if all members tie.

    ``law`` is bounded by the measurement at this σ, within its errors.
    """
    m, s, square = response.power, response.spread, response.sigma**2
    if m <= 0 or s <= 0:
        return Stride(0.0, 0.0, 0.0, capped=False)
    kappa = min(1.0, min(law.transfer * square, max(0.0, response.transfer) + response.transfer_error) / m)
    slope, gap = kappa * m / s, max(law.gap * square, response.gap - response.gap_error)
    loss = 2 * gap * m / (population * s**2) if antithetic else gap / population
    cap = MARGIN * math.sqrt(population) * (min(1.0, s / math.sqrt(2 * m)) if antithetic else 1.0)
    free = slope / (2 * loss) if loss > 0 else math.inf
    ratio = min(cap, free)
    return Stride(ratio, slope * ratio - loss * ratio**2, kappa, capped=free >= cap)
