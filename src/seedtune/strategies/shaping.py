"""Reward shaping: pure functions from scores (members, prompts), NaN where missing, to utilities.

A missing score is replaced by its prompt's mean over the members with a score, so that failing on a hard prompt is no
advantage.  A member without any score gets utility 0 and is excluded from mean and std.  A population whose rewards
are all equal gets all zeros; so does a population whose spread is 0 in float64, for shapings that divide by it.

Members may have been evaluated on prompts of different generations (their ``groups``).  Each group's missing scores
are then filled separately, and members are compared by their distance from their own group's mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Vector = NDArray[np.float64]
Groups = Sequence[int]
"""The group of every member; empty: all members are in one group."""

Shaping = Callable[[Scores], Vector]
"""Scores (members, prompts) to one utility per member."""

TIE = 1e-12
"""Rewards whose difference, relative to the largest, is below this are equal: rounding noise is no direction."""


def fill_missing(scores: Scores) -> Scores:
    """Replace missing scores by their prompt's mean; drop prompts without any score; members without any stay NaN."""
    seen = ~np.isnan(scores)
    scored = scores[:, seen.any(axis=0)]
    seen = ~np.isnan(scored)
    means = np.where(seen, scored, 0.0).sum(axis=0) / np.maximum(seen.sum(axis=0), 1)
    filled = np.where(seen, scored, means)
    filled[~seen.any(axis=1)] = np.nan
    return filled


def member_rewards(scores: Scores, groups: Groups = ()) -> Vector:
    """R (members,): the mean over the prompts of the member's group, NaN for a member without any score."""
    rewards: Vector = np.full(scores.shape[0], np.nan)
    if len(set(groups)) > 1:
        for rows in rows_of(groups):
            rewards[rows] = member_rewards(scores[rows])
        return rewards
    filled = fill_missing(scores)
    return filled.mean(axis=1) if filled.shape[1] else rewards


def rows_of(groups: Groups) -> list[NDArray[np.intp]]:
    """Return the row indices of every group, by ascending group."""
    names = np.asarray(groups)
    return [np.flatnonzero(names == name) for name in np.unique(names)]


def comparable(scores: Scores, groups: Groups) -> Scores:
    """Return the input of shapings: the scores if there is one group, else R − the group's mean as (members, 1).

    A group whose members tie is all zeros, without rounding residue.
    """
    return _centered(member_rewards(scores, groups), groups)[:, None] if len(set(groups)) > 1 else scores


def _centered(rewards: Vector, groups: Groups) -> Vector:
    centered = np.full(rewards.size, np.nan)
    for rows in rows_of(groups):
        known = rows[~np.isnan(rewards[rows])]
        if known.size:
            apart = rewards[known] - rewards[known].mean()
            centered[known] = 0.0 if _tied(apart, np.abs(rewards[known]).max()) else apart
    return centered


def zscore(scores: Scores) -> Vector:
    """zᵢ = (Rᵢ − mean R)/std R (arXiv 2509.24372), with the population std (ddof 0)."""
    return standardise(member_rewards(scores))


def per_prompt(scores: Scores) -> Vector:
    """zᵢ = meanₚ (sᵢₚ − meanⱼ sⱼₚ)/std of all centered scores (EGGROLL, arXiv 2511.16652)."""
    filled = fill_missing(scores)
    valid = ~np.isnan(filled).any(axis=1) & (filled.shape[1] > 0)
    result = np.zeros(scores.shape[0])
    if not valid.any():
        return result
    centered = filled[valid] - filled[valid].mean(axis=0)
    spread = centered.std()
    if spread == 0.0 or _tied(centered, np.abs(filled[valid]).max()):
        return result
    means = centered.mean(axis=1)
    if not _tied(means, np.abs(filled[valid]).max()):  # members may differ on prompts and yet tie on average
        result[valid] = means / spread
    return result


def centered_rank(scores: Scores) -> Vector:
    """zᵢ = rankᵢ/(n − 1) − ½ from −½ (worst) to ½ (best); ties share their mean rank (arXiv 1703.03864)."""
    rewards = member_rewards(scores)
    valid = ~np.isnan(rewards)
    result = np.zeros(rewards.size)
    if valid.sum() > 1:
        result[valid] = _mean_ranks(rewards[valid]) / (valid.sum() - 1) - 0.5
    return result


def unshaped(scores: Scores) -> Vector:
    """zᵢ = Rᵢ, for rewards that already have mean 0 and variance 1; all zeros if they tie.

    `centered` if a member has no reward: its pair's other member would not cancel the mean.
    """
    rewards = member_rewards(scores)
    if np.isnan(rewards).any():
        return centered(scores)
    return rewards if standardise(rewards).any() else np.zeros(rewards.size)


def centered(scores: Scores) -> Vector:
    """zᵢ = Rᵢ − mean R; all zeros if they tie.

    ``none`` without complete pairs: with zᵢ = Rᵢ the mean reward would multiply the sum of the noise, a random walk.
    """
    rewards = member_rewards(scores)
    apart = rewards - np.nanmean(rewards) if standardise(rewards).any() else np.zeros(rewards.size)
    return np.where(np.isnan(apart), 0.0, apart)


def combine(by_reward: NDArray[np.float64], *, weights: Sequence[float], shape: Shaping) -> Vector:
    """zᵢ = Σₖ weightₖ · shape(scores of reward k)ᵢ: every reward counts by its weight, independent of its scale.

    ``by_reward`` is (rewards, members, prompts), NaN where a reward does not apply.  A reward adds 0 to members it does
    not apply to, and to all members if it applies to none of them or if all members tie.
    After GDPO (arXiv 2601.05242), which also divides the sum by its spread; here weights scale the step.
    """
    result = np.zeros(by_reward.shape[1])
    for weight, scores in zip(weights, by_reward, strict=True):
        result += weight * shape(scores)
    return result


def standardise(rewards: Vector) -> Vector:
    """(R − mean)/std over members with a reward; 0 for the others, and for all if they tie."""
    valid = ~np.isnan(rewards)
    result = np.zeros(rewards.size)
    if not valid.any():
        return result
    centered = rewards[valid] - rewards[valid].mean()
    spread = centered.std()
    if spread == 0.0 or _tied(centered, np.abs(rewards[valid]).max()):
        return result
    result[valid] = centered / spread
    return result


def _tied(centered: NDArray[np.float64], largest: float) -> bool:
    return bool(np.abs(centered).max() <= TIE * largest)


def _mean_ranks(rewards: Vector) -> Vector:
    """Ranks from 0; neighbours that differ by rounding noise only form a group, which shares its mean rank."""
    order = np.argsort(rewards, kind="stable")
    apart = np.diff(rewards[order]) > TIE * np.abs(rewards).max()
    group = np.concatenate([[0], np.cumsum(apart)])
    means = np.bincount(group, weights=np.arange(rewards.size)) / np.bincount(group)
    ranks = np.empty(rewards.size)
    ranks[order] = means[group]
    return ranks


SHAPINGS: dict[str, Shaping] = {
    "zscore": zscore,
    "per_prompt": per_prompt,
    "centered_rank": centered_rank,
    "none": unshaped,
}
"""Shapings by their name in the configuration."""
