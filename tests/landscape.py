"""A landscape of dense vectors that costs nothing: strategies climb it with plain numpy in place of an engine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from seedtune import strategies
from seedtune.config.config import Config
from seedtune.run.lineage import Lineage
from seedtune.run.records import Record
from seedtune.strategies.base import Feedback, Step, update_of
from seedtune.strategies.shaping import member_rewards
from seedtune.types import UNPERTURBED, Plan, Term, Update

SIZE = 10_000
Vector = np.ndarray
Damage = Callable[[Vector, int], None]


@lru_cache(maxsize=512)
def noise(generation: int, pair: int) -> Vector:
    """ε, which all runs share and none can change."""
    drawn = np.random.default_rng((generation, pair)).standard_normal(SIZE)
    drawn.flags.writeable = False
    return drawn


def total(terms: tuple[Term, ...]) -> Vector:
    return sum((term.weight * noise(term.generation, term.pair) for term in terms), np.zeros(SIZE))


def quadratic(theta: Vector, generation: int, label: int) -> Vector:
    """Four noisy looks at −|θ|²/size."""
    jitter = np.random.default_rng((generation, label, 1)).normal(size=4)
    return -np.mean(theta**2) + 1e-4 * jitter


def watched(theta: Vector, generation: int) -> Vector:
    """Noisy looks at −|θ|²/size as the scores of one model on the prompts that are watched."""
    jitter = np.random.default_rng((generation, 2)).normal(size=(1, 8))
    return -np.mean(theta**2) + 1e-4 * jitter


def applied(theta: Vector, base: Vector, update: Update) -> Vector:
    """θ after an update, in float64, as the formulas have it."""
    step = total(update.terms)
    moved = theta + step - base
    if update.decay is not None:
        moved = (1 - update.decay.l2) * moved
        moved = np.sign(moved) * np.maximum(np.abs(moved) - update.decay.l1, 0)
    return base + moved


@dataclass
class Climb:
    """A run: θ at the end, −|θ|²/size after every generation, and its records."""

    theta: Vector
    rewards: list[float] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


def evaluate(plan: Plan, theta: Vector, order: Callable[[int], list[int]] = lambda n: list(range(n))) -> Feedback:
    """Scores of a plan's members, evaluated in any ``order``, and of the unperturbed model."""
    here = theta if plan.shift is None else theta + shifted(plan)
    scores = np.empty((len(plan.members), 4))
    for place in order(len(plan.members)):
        member = plan.members[place]
        there = here + member.sign * plan.sigma * noise(member.generation, member.pair)
        scores[place] = quadratic(there, plan.generation, place)
    return Feedback(scores, quadratic(here, plan.generation, 10_000))


def shifted(plan: Plan) -> Vector:
    way = total(plan.shift.terms)
    length = np.linalg.norm(way)
    return way if plan.shift.length is None or length == 0 else way * (plan.shift.length / length)


def two_rewards(scores: Vector) -> Vector:
    """Two that sum to the scores, and tie or fail where these do."""
    bent = 0.3 * (scores - scores**2)
    return np.stack([scores - bent, bent])


def climb(
    config: Config,
    generations: int,
    damage: Damage = lambda *_: None,
    order: Callable[[int], list[int]] = lambda n: list(range(n)),
) -> Climb:
    """Run a configuration's strategy from θ₀ = 1."""
    strategy, lineage = strategies.create(config, (1.0, 1.0)), Lineage()
    base = np.ones(SIZE)
    run, state, thetas = Climb(base.copy()), {}, [base.copy()]
    for generation in range(generations):
        plan = strategy.ask(state, generation)
        feedback = evaluate(plan, run.theta, order)
        damage(feedback.scores, generation)
        if strategy.watches(plan):
            damage(looks := watched(run.theta, generation), generation)
            feedback = replace(feedback, watched=[None if math.isnan(r) else float(r) for r in looks[0]])
        if config.multi_objective_aggregation == "normalize_then_sum":
            feedback = replace(feedback, by_reward=two_rewards(feedback.scores))
        step = strategy.tell(state, plan, feedback)
        state = json.loads(json.dumps(step.state))
        record = recorded(plan, feedback, step)
        lineage.add(record)
        run.records.append(record)
        if step.rollback_to is None:
            run.theta = applied(run.theta, base, lineage.last())
        else:
            run.theta = thetas[step.rollback_to]
        thetas.append(run.theta)
        run.rewards.append(-float(np.mean(run.theta**2)))
    return run


def terms_of(plan: Plan, step: Step) -> tuple[Term, ...]:
    """Where a step goes."""
    return update_of(plan, step.coefficients, step.alpha).terms


def recorded(plan: Plan, feedback: Feedback, step) -> Record:
    """The generation as a ledger has it after writing and reading."""
    made = Record(
        plan=plan,
        alpha=step.alpha,
        rewards=tuple(float(r) for r in member_rewards(feedback.scores)),
        coefficients=step.coefficients,
        prompts=(0, 1, 2, 3),
        reward_unperturbed=float(np.mean(feedback.unperturbed)),
        tokens={},
        state=step.state,
        agreement=step.evidence.agreement,
        watched=tuple(feedback.watched),
        decay=step.decay,
        rollback_to=step.rollback_to,
    )
    return Record.from_json(json.loads(json.dumps(made.to_json())))


__all__ = [
    "SIZE",
    "UNPERTURBED",
    "Climb",
    "applied",
    "climb",
    "evaluate",
    "noise",
    "quadratic",
    "recorded",
    "terms_of",
    "total",
]
