"""What a generation says about how far to step, besides its utilities: recorded, so that the step can be checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from seedtune.strategies.shaping import Groups, fill_missing
from seedtune.types import Plan

Rewards = Sequence[float | None]
"""The watched prompts' rewards, None where nothing was scored."""


class Evidence(NamedTuple):
    """Agreement between prompts, cost of a perturbation (None: not known), and watched rewards, if it was time."""

    agreement: float | None = None
    cost: float | None = None
    watched: Rewards = ()


NOTHING = Evidence()
"""Nothing is known."""


def cost(rewards: Sequence[float], unperturbed: float | None) -> float | None:
    """C = (R(θ) − mean R)/s: what a random step as long as a member's perturbation costs, in the members' spread s.

    By correctly rounded sums, so that every machine computes the same number.  NaN rewards do not count; None if
    nothing is known.
    """
    known = [reward for reward in rewards if not math.isnan(reward)]
    if not known or unperturbed is None or math.isnan(unperturbed):
        return None
    mean = math.fsum(known) / len(known)
    spread = math.sqrt(math.fsum((reward - mean) ** 2 for reward in known) / len(known))
    found = (unperturbed - mean) / spread if spread > 0.0 else math.inf
    return found if math.isfinite(found) else None


def agreement(plan: Plan, scores: NDArray[np.float64], groups: Groups = ()) -> float | None:
    """κ = 1 − (1 − T/m)·(Q − 2)/Q over Q noise samples q and prompts i, j: the part of m that holds on other prompts.

    With the odd part o_qi of a sample's scores ((R⁺ − R⁻)/2 of a pair, R − mean R of a single member),
    m = mean_q (mean_i o_qi)² is what the samples show on these prompts, and T = mean_q mean_{i≠j} o_qi·o_qj the part of
    it that one prompt predicts of another.  T and m are unbiased, and (Q − 2)/Q makes κ so, for normal o: it is the
    James-Stein factor, by which the samples' mean rewards shrink to the best guess of what they are on all prompts.

    None if fewer than three samples or two prompts have scores, if all tie, or if members answered prompts of different
    generations, which are not compared.
    """
    odd = _odd_parts(plan, scores) if len(set(groups)) <= 1 else np.empty((0, 0))
    samples, prompts = odd.shape
    if samples < 3 or prompts < 2:
        return None
    square, sums = (odd**2).sum(axis=1), odd.sum(axis=1) ** 2
    power, shared = float(sums.mean()) / prompts**2, float((sums - square).mean()) / (prompts * (prompts - 1))
    found = 1.0 - (1.0 - shared / power) * (samples - 2) / samples if power > 0.0 else np.inf
    return float(f"{found:.6g}") if np.isfinite(found) else None


def _odd_parts(plan: Plan, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(samples, prompts); samples of which a member has no score are left out."""
    filled = fill_missing(scores)
    if not filled.size or np.isnan(filled).all():
        return np.empty((0, 0))
    centered = filled - np.nanmean(filled, axis=0)
    rows: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for member, row in zip(plan.members, centered, strict=True):
        rows.setdefault((member.generation, member.pair), []).append(member.sign * row)
    parts = np.array([np.mean(group, axis=0) for group in rows.values()])
    known: NDArray[np.float64] = parts[~np.isnan(parts).any(axis=1)]
    return known
