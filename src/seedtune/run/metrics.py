"""Metrics of a generation under TRL's names, and alarms that say what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.config.config import Config
from seedtune.engines.base import EngineInfo, EngineTimes
from seedtune.errors import ConfigError, RunError, suggest
from seedtune.rewards.base import Reward
from seedtune.run.records import Record
from seedtune.strategies.base import Scores, directions
from seedtune.strategies.shaping import SHAPINGS, member_rewards
from seedtune.strategies.step_size import LEAST_AGREEMENT, length_of, sure_agreement
from seedtune.types import Member, Rollout, length, tokens

Floats = NDArray[np.float64]


def mean(values: Sequence[float] | Floats) -> float | None:
    """Mean of the values that are not NaN, None if there are none."""
    known = _known(values)
    return float(known.mean()) if known.size else None


def spread(values: Sequence[float] | Floats) -> float | None:
    """Standard deviation of the values that are not NaN, None if there are none."""
    known = _known(values)
    return float(known.std()) if known.size else None


def _known(values: Sequence[float] | Floats) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]


def member_metrics(rewards: Sequence[float] | Floats) -> dict[str, float | None]:
    """Mean, standard deviation and maximum of the reward over members."""
    known = _known(rewards)
    return {
        "reward": mean(rewards),
        "reward_std": spread(rewards),
        "reward_best": float(known.max()) if known.size else None,
    }


def prompt_metrics(scores: Floats, asked: NDArray[np.bool_] | None = None) -> dict[str, float]:
    """Share of prompts on which all members tie, and of missing scores among those ``asked`` for (default: all)."""
    return {
        "frac_reward_zero_std": float(np.mean([_tied(column) for column in scores.T])),
        "frac_reward_missing": float(np.isnan(scores if asked is None else scores[asked]).mean()),
    }


def _tied(column: Floats) -> bool:
    known = _known(column)
    return known.size == 0 or bool(np.ptp(known) == 0.0)


def function_metrics(values: Mapping[str, Sequence[float]], failed: Mapping[str, int]) -> dict[str, float | None]:
    """``rewards/<function>/mean`` and ``/std`` over all rollouts, and ``/failed``.

    ``failed`` counts the completions on which the function raised, crashed, hung or returned no number.
    """
    result: dict[str, float | None] = {}
    for name, scores in values.items():
        result[f"rewards/{name}/mean"], result[f"rewards/{name}/std"] = mean(scores), spread(scores)
    return result | {f"rewards/{name}/failed": count for name, count in failed.items()}


def step_share_metrics(
    config: Config, rewards: Sequence[Reward], by_reward: Floats, coefficients: Sequence[float]
) -> dict[str, float]:
    """``rewards/<function>/step_share``: the part of the step's direction that each of several rewards gave.

    cₖ/Σ|cⱼ| with cₖ = weightₖ·⟨Rₖ − mean Rₖ, z⟩ over members, z the ``coefficients``: shares add up to 1, unless some
    are negative, of rewards that the step went against.  With ``normalize_then_sum`` the rewards Rₖ are shaped first.
    ``by_reward`` is (rewards, members, prompts).  {} for one reward, and if no reward gave a direction.
    """
    separate = config.multi_objective_aggregation == "normalize_then_sum"
    shape = SHAPINGS[config.shaping] if separate else member_rewards
    parts = [_centered(shape(scores)) for scores in by_reward]
    given = [one.weight * float(part @ np.asarray(coefficients)) for one, part in zip(rewards, parts, strict=True)]
    whole = sum(map(abs, given))
    if len(rewards) < 2 or not 0.0 < whole < np.inf:
        return {}
    return {f"rewards/{one.name}/step_share": part / whole for one, part in zip(rewards, given, strict=True)}


def _centered(values: Floats) -> Floats:
    known = _known(values)
    return np.nan_to_num(values - known.mean()) if known.size else np.zeros(values.shape)


def completion_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Completion lengths in tokens, and the shares of truncated, duplicate and repeating completions.

    ``duplicate_ratio``: rollouts whose text equals that of another member on the same prompt (samples of one member may
    be equal).  ``repeating_ratio``: rollouts in which over a fifth of the three-token sequences in the last 64 tokens
    occurred before in these.
    """
    lengths = np.array([length(rollout) for rollout in rollouts])
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": int(lengths.min()),
        "completions/max_length": int(lengths.max()),
        "completions/clipped_ratio": float(np.mean([rollout.finish == "length" for rollout in rollouts])),
        "completions/duplicate_ratio": _duplicates(rollouts),
        "completions/repeating_ratio": float(np.mean([tokens(rollout).repeating for rollout in rollouts])),
    }


def _duplicates(rollouts: Sequence[Rollout]) -> float:
    authors: dict[tuple[int, str], set[Member]] = {}
    for rollout in rollouts:
        authors.setdefault((rollout.prompt, rollout.text), set()).add(rollout.member)
    return float(np.mean([len(authors[rollout.prompt, rollout.text]) > 1 for rollout in rollouts]))


def time_metrics(times: EngineTimes, seconds: Mapping[str, float], step_time: float) -> dict[str, float]:
    """Seconds of a generation by activity; ``time/other`` is the rest."""
    rollouts = seconds["rollouts"]
    named = {
        "time/rollouts": max(0.0, rollouts - times.perturb),
        "time/perturb": times.perturb,
        "time/score": seconds["score"],
        "time/update": times.update,
    }
    return {
        "step_time": step_time,
        **named,
        "time/other": max(0.0, step_time - sum(named.values())),
        "tokens_per_second": times.generated_tokens / rollouts if rollouts > 0 else 0.0,
    }


def population_metrics(record: Record, scores: Scores, unperturbed: Scores | None) -> dict[str, float | None]:
    """Compare the unperturbed model with its members, on prompts that it and at least one member have scores for.

    ``success_rate``: share of members that beat it, about ½ where σ is small; ``curvature``: its reward minus the
    members' mean, the cost of a random step of a member's length; ``step_ratio``: the step in such lengths;
    ``agreement``: the part of the differences between members that holds on other prompts.
    """
    plan = record.plan
    step_ratio = record.alpha * length_of(plan, record.coefficients) / (len(plan.members) * plan.sigma)
    found = {"step_ratio": step_ratio, "agreement": record.agreement}
    if unperturbed is None or plan.shift is not None:
        return found
    common = ~np.isnan(unperturbed) & ~np.isnan(scores).all(axis=0)
    rewards = member_rewards(scores[:, common])
    rewards = rewards[~np.isnan(rewards)]
    if not rewards.size:
        return found
    reward = float(unperturbed[common].mean())
    return {
        "success_rate": float(np.mean(rewards > reward) + 0.5 * np.mean(rewards == reward)),
        "curvature": reward - float(rewards.mean()),
        **found,
    }


@dataclass(frozen=True, slots=True)
class MetricLimit:
    """An alarm if a metric is above (or ``below``) a limit, after subtracting the base model's value if it is known."""

    metric: str
    limit: float
    message: str
    """Its fields: ``value``, and ``usual``, the base model's value."""

    below: bool = False


_LOOK = "Look at them: seedtune inspect RUN."
_LENGTH = f"the base model's. If the reward should not pay for length, take it out of it. {_LOOK}"

LIMITS = (
    MetricLimit(
        "completions/clipped_ratio",
        0.9,
        "over 90 % of completions hit max_completion_length. Raise it if answers should be longer.",
    ),
    MetricLimit(
        "completions/duplicate_ratio",
        0.9,
        "over 90 % of completions equal another member's. Raise sigma, unless only few answers are possible.",
    ),
    MetricLimit(
        "completions/repeating_ratio",
        0.5,
        "over half of the completions end in a repetition. If the base model's did not, the weights have moved "
        "too far: lower sigma and alpha.",
    ),
    MetricLimit(
        "completions/empty_ratio",
        0.2,
        "{value:.0%} of the answers are empty (the base model: {usual:.0%}). Make the reward of an empty answer the "
        "lowest there is, or lower sigma and alpha if the reward has fallen, too.",
    ),
    # Wide, since completions are often meant to get shorter.
    MetricLimit("completions/length_change", 3.0, f"answers are {{value:.1f}} times as long as {_LENGTH}"),
    MetricLimit("completions/length_change", 0.1, f"answers are {{value:.0%}} of the length of {_LENGTH}", below=True),
    MetricLimit(
        "completions/language_shift",
        0.2,
        "{value:.0%} of the letters are in other scripts than the base model's. Let the reward check the language, or "
        f"hold on to the base model with anchor_l2. {_LOOK}",
    ),
    MetricLimit(
        "completions/novelty",
        0.25,
        "{value:.0%} more letter triples than usual are new to the base model's answers: another language, or noise "
        f"because the weights have moved too far. Lower sigma and alpha, or let the reward check it. {_LOOK}",
    ),
    MetricLimit(
        "kl",  # nats per token
        2.0,
        "the model is {value:.1f} nats a token away from the base model. Watch other tasks (eval_tasks), and hold on "
        "to the base model with anchor_l2, or take smaller steps.",
    ),
)


def limit_alarms(metrics: Mapping[str, Any], base: Mapping[str, float]) -> list[str]:
    """Return the alarms of the metrics beyond their limits; ``base`` has the base model's values of some."""
    found = []
    for limit in LIMITS:
        value, usual = metrics.get(limit.metric), base.get(limit.metric, 0.0)
        if value is not None and (value < limit.limit if limit.below else value - usual > limit.limit):
            found.append(limit.message.format(value=value, usual=usual))
    return found


SETTLED = 16
"""Generations after which a run whose prompts agree on nothing says so, once."""


def record_alarms(record: Record) -> list[str]:
    """Return the problems of a generation that its record shows, and what to change."""
    found, sums = [], directions(record.plan.members, record.coefficients)
    if np.isnan(record.rewards).all():
        found.append("no member could be scored: the update is zero. Check the reward function.")
    elif not any(sums.values()):
        found.append("all members have the same reward: the update is zero. Raise sigma or use more prompts.")
    state = record.state.get("step_size", {})
    if state.get("seen") == SETTLED and sure_agreement(state, len(sums)) == LEAST_AGREEMENT:
        found.append(
            f"in {SETTLED} generations prompts have not agreed for sure on which members are better, so steps are the "
            "shortest. Use more prompts a generation, more members, or a reward that tells more answers apart."
        )
    if record.rollback_to is not None:
        found.append(
            f"the rewards of watched prompts fell: back to the model after generation {record.rollback_to}, and on "
            "with half the step. If it happens again, lower sigma."
        )
    return found


def failure_alarms(failed: Mapping[str, int], rollouts: int) -> list[str]:
    """Return an alarm for each reward function that failed on some of the ``rollouts`` completions."""
    return [
        f"the reward function {name!r} failed on {count} of {rollouts} completions: see failures.jsonl."
        for name, count in failed.items()
        if count
    ]


def evaluation_name(name: str) -> str:
    """Return the name of a metric of evaluations, with ``eval_`` before it where that is missing."""
    return name if name.startswith("eval_") else f"eval_{name}"


def best_generation(rows: Sequence[Mapping[str, Any]], choice: str) -> int:
    """Return the generation whose evaluation has the highest (``best[:METRIC]``) or lowest (``lowest:METRIC``) value.

    The metric is ``eval_reward`` by default; of equal values the earliest counts.  ``rows`` are lines of
    ``metrics.jsonl``.  Raises ConfigError for another form of ``choice``, RunError if no evaluation has the metric.
    """
    kind, colon, asked = choice.partition(":")
    if kind not in ("best", "lowest") or bool(colon) != bool(asked) or (kind == "lowest" and not asked):
        raise ConfigError(f"generation {choice!r}: give a number, best, best:METRIC or lowest:METRIC.")
    name, evaluations = evaluation_name(asked or "reward"), [row for row in rows if "eval_reward" in row]
    values = [(row[name], row["generation"]) for row in evaluations if row.get(name) is not None]
    if not values:
        known = sorted({name for row in evaluations for name in row if name.startswith("eval_")})
        listed = f"Known: {', '.join(known)}." if known else "Nothing was evaluated: give a number."
        raise RunError(f"no evaluation of the run has {name}.{suggest(name, known)} {listed}")
    sign = -1 if kind == "best" else 1
    generation: int = min((sign * value, generation) for value, generation in values)[1]
    return generation


def products_row(info: EngineInfo, generation: int) -> dict[str, Any]:
    """Return the metrics line that says how rewards are computed: the first one, and one at every change."""
    return {"generation": generation, "products": info.products, "arithmetic": dict(info.arithmetic)}


def restored(record: Record) -> dict[str, Any]:
    """Rebuild from the ledger the metrics of a generation that were lost in a kill, marked ``restored``."""
    return {
        "generation": record.plan.generation + 1,
        **member_metrics(record.rewards),
        "reward_unperturbed": record.reward_unperturbed,
        "sigma": record.plan.sigma,
        "alpha": record.alpha,
        "num_tokens": sum(record.tokens.values()),
        "alarms": [],
        "restored": True,
    }
