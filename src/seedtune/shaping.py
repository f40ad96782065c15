"""From scores to coefficients: pure functions of a (members, prompts) matrix, NaN where nothing was scored.

A missing score counts as its prompt's mean over the members that have one, so failing on a hard prompt is
no advantage.  A member without any score gets coefficient 0 and does not enter mean and std.  A population
whose rewards are all equal, or so small that their spread is 0 in float64, gives all zeros.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Vector = NDArray[np.float64]

TIE = 1e-12
"""Rewards closer than this, relative to the largest, are equal: rounding noise is no direction."""


def fill_missing(scores: Scores) -> Scores:
    """Missing scores become their prompt's mean; prompts nobody scored are dropped; empty rows stay NaN."""
    seen = ~np.isnan(scores)
    scored = scores[:, seen.any(axis=0)]
    seen = ~np.isnan(scored)
    means = np.where(seen, scored, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    filled = np.where(seen, scored, means)
    filled[~seen.any(axis=1)] = np.nan
    return filled


def member_rewards(scores: Scores) -> Vector:
    """R (members,): the mean over prompts, NaN for a member without any score."""
    filled = fill_missing(scores)
    if filled.shape[1] == 0:
        return np.full(scores.shape[0], np.nan)
    rewards: Vector = filled.mean(axis=1)
    return rewards


def zscore(scores: Scores) -> Vector:
    """zᵢ = (Rᵢ − mean R)/std R (arXiv 2509.24372), the population's own std."""
    return standardise(member_rewards(scores))


def per_prompt(scores: Scores) -> Vector:
    """zᵢ = meanₚ (sᵢₚ − meanⱼ sⱼₚ)/std of all centred scores (EGGROLL, arXiv 2511.16652)."""
    filled = fill_missing(scores)
    valid = ~np.isnan(filled).any(axis=1) & (filled.shape[1] > 0)
    result = np.zeros(scores.shape[0])
    if not valid.any():
        return result
    centred = filled[valid] - filled[valid].mean(axis=0)
    spread = centred.std()
    if spread == 0.0 or _tied(centred, np.abs(filled[valid]).max()):
        return result
    result[valid] = centred.mean(axis=1) / spread
    return result


def standardise(rewards: Vector) -> Vector:
    """(R − mean)/std over the members that have a reward; 0 for the others, and for all if they tie."""
    valid = ~np.isnan(rewards)
    result = np.zeros(rewards.size)
    if not valid.any():
        return result
    centred = rewards[valid] - rewards[valid].mean()
    spread = centred.std()
    if spread == 0.0 or _tied(centred, np.abs(rewards[valid]).max()):
        return result
    result[valid] = centred / spread
    return result


def _tied(centred: NDArray[np.float64], largest: float) -> bool:
    return bool(np.abs(centred).max() <= TIE * largest)


SHAPINGS = {"zscore": zscore, "per_prompt": per_prompt}
"""Every shaping by its name in the configuration."""
