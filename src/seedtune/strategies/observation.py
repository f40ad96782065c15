"""Observation of a generation: spread between members, its part that transfers to other prompts, and the curvature.

Members are points at distance σ√d around θ, so rewards are described by a second-order model along the noise samples
ε_q.  With o_q the odd part of a sample's rewards ((R⁺ − R⁻)/2 of a pair; R − mean R of a single member) and the
update's coefficients w_q (Σ sign·z of the sample), a step of ρ times the length of a member's perturbation gives

    gain(ρ) = slope·reliability·ρ − curvature·ρ²,      slope = Σ w_q o_q/‖w‖,   curvature = R(θ) − mean R.

The slope is measured by the members of this generation; the reliability is the part of it that holds over all training
prompts (`step_estimates.reliability`); the curvature is ½σ² tr H, −H being the Hessian of the reward: the average cost
of any step as long as a member's perturbation.

Members evaluated on prompts of different generations are each compared with their own generation's mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from seedtune.strategies.base import Feedback, Observation, directions
from seedtune.strategies.quadratic_model import crossed, standard_error
from seedtune.strategies.shaping import fill_missing, member_rewards, rows_of
from seedtune.types import Plan

Vector = NDArray[np.float64]


def observe(plan: Plan, feedback: Feedback, utilities: Sequence[float]) -> Observation:
    """Compute the observation of a generation; empty if fewer than two noise samples have rewards."""
    rewards, compared = feedback.rewards, member_rewards(feedback.comparable)
    known = ~np.isnan(rewards)
    odd = _odd_parts_of_each(plan, feedback)
    if sum(len(part) for part in odd) < 2:
        return {}
    weights = np.array(list(directions(plan.members, utilities).values()))
    length = float(np.linalg.norm(weights))
    means = np.concatenate([part.mean(axis=1) for part in odd])
    whole = directions(plan.members, np.where(known, compared - compared[known].mean(), 0.0).tolist())
    signed = np.array(list(whole.values())) / _members_of_each(plan)
    observation = {
        "reward": float(rewards[known].mean()),
        "spread": float(compared[known].std()),
        "length": length,
        "slope": float(weights @ signed) / length if length > 0.0 else 0.0,
        "power": float(np.mean(means**2)),
        "shared": shared_power(*odd),
        "share": feedback.share,
    }
    scored = float(np.mean(~np.isnan(feedback.scores)))
    if scored < 1.0:
        observation["scored"] = scored
    if all(part.shape[1] > 1 for part in odd):
        observation["shared_error"] = standard_error(np.concatenate([crossed(part) for part in odd]))
    observation |= {**_error_of_mean(feedback), **_around(feedback)}
    return observation if np.isfinite(list(observation.values())).all() else {}


def _error_of_mean(feedback: Feedback) -> Observation:
    """Compute the standard error of the mean reward, over members and, if ``share`` is below 1, over the drawn prompts.

    The variance over n prompts is itself an estimate: the mean's is that of Student's distribution, s²/n·(n−1)/(n−3).
    Batches of an epoch have no prompt in common, so there is no correction for drawing from a finite set.
    """
    scored = feedback.scores[:, ~np.isnan(feedback.scores).all(axis=0)]
    count, rewards = scored.shape[1], feedback.rewards[~np.isnan(feedback.rewards)]
    if feedback.share < 1.0 and count <= 3:
        return {}
    drawn = float(np.nanmean(scored, axis=0).var()) / (count - 3) if feedback.share < 1.0 else 0.0
    return {"reward_error": float(np.sqrt(rewards.var() / rewards.size + drawn))}


def _odd_parts_of_each(plan: Plan, feedback: Feedback) -> list[Vector]:
    """Compute the odd parts of each generation's members on its own prompts; those without rewards are left out."""
    if len(set(feedback.groups)) <= 1:
        parts = [odd_parts(plan, feedback.scores)]
    else:
        mine = [(rows, tuple(plan.members[row] for row in rows)) for rows in rows_of(feedback.groups)]
        parts = [odd_parts(replace(plan, members=members), feedback.scores[rows]) for rows, members in mine]
    return [part for part in parts if part.size]


def odd_parts(plan: Plan, scores: Vector) -> Vector:
    """(samples, prompts): (R⁺ − R⁻)/2 of pairs, R − mean of single members; samples that lack rewards are left out."""
    filled = fill_missing(scores)
    centered = filled - np.nanmean(filled, axis=0) if filled.size and not np.isnan(filled).all() else filled
    rows: dict[tuple[int, int], list[Vector]] = {}
    for member, row in zip(plan.members, centered, strict=True):
        rows.setdefault((member.generation, member.pair), []).append(member.sign * row)
    parts = [np.mean(group, axis=0) for group in rows.values()]
    kept = [part for part in parts if not np.isnan(part).any()]
    return np.array(kept).reshape(len(kept), filled.shape[1])


def shared_power(*odd: Vector) -> float:
    """E[o_qi·o_qj] over two different prompts i, j: the part of the power that is the same on every prompt.

    With one prompt this is the whole power, chance included: such an observation has no ``shared_error`` and is
    ignored.
    Unbiased, so the estimate can be negative where the true value is 0.
    """
    return float(np.concatenate([crossed(part) for part in odd]).mean())


def _members_of_each(plan: Plan) -> Vector:
    counts = directions(plan.members, [float(member.sign) for member in plan.members])
    return np.array(list(counts.values()))


def _around(feedback: Feedback) -> Observation:
    """Compare the unperturbed model with the members, on prompts for which it and at least one member have scores."""
    if feedback.unperturbed is None:
        return {}
    common = ~np.isnan(feedback.unperturbed) & ~np.isnan(feedback.scores).all(axis=0)
    rewards = member_rewards(feedback.scores[:, common])
    rewards = rewards[~np.isnan(rewards)]
    if not rewards.size:
        return {}
    unperturbed = float(feedback.unperturbed[common].mean())
    return {
        "unperturbed": float(np.nanmean(feedback.unperturbed)),
        "curvature": unperturbed - float(rewards.mean()),
        "curvature_error": _error_of(feedback.unperturbed[common], feedback.scores[:, common]),
        "success_rate": float(np.mean(rewards > unperturbed) + 0.5 * np.mean(rewards == unperturbed)),
    }


def _error_of(unperturbed: Vector, scores: Vector) -> float:
    """Standard error of unperturbed − mean of the members, from the spread over prompts, or over members if one prompt.

    The unperturbed model is a single model, and its completions are as chaotic in the weights as a member's.
    """
    if unperturbed.size == 1:
        return float(np.nanstd(scores))
    apart = unperturbed - np.nanmean(scores, axis=0)
    return float(apart.std(ddof=1) / np.sqrt(apart.size))


def gain(observation: Observation, step_ratio: float, reliability: float) -> float:
    """Predict the reward gained by a step of ``step_ratio`` perturbation lengths, in the second-order model."""
    return observation["slope"] * reliability * step_ratio - observation.get("curvature", 0.0) * step_ratio**2


def step_ratio_of(alpha: float, sigma: float, observation: Observation, members: int) -> float:
    """ρ = ‖α/N Σ wε‖/‖σε‖ = α‖w‖/(Nσ): the length of a step in units of a member's perturbation."""
    return alpha * observation["length"] / (members * sigma)
