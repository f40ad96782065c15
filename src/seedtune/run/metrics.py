"""Metrics of a generation under TRL's names, and alarms that say what to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seedtune.engines.base import EngineInfo, EngineTimes
from seedtune.engines.recorded_arithmetic import Entry, kind
from seedtune.run.ledger import Record
from seedtune.types import Member, Rollout, length, tokens

Floats = NDArray[np.float64]


def mean(values: Sequence[float] | Floats) -> float | None:
    """Mean of the values that are not NaN, None if there are none."""
    array = np.asarray(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    return float(known.mean()) if known.size else None


def spread(values: Sequence[float] | Floats) -> float | None:
    """Standard deviation of the values that are not NaN, None if there are none."""
    array = np.asarray(values, dtype=np.float64)
    known = array[~np.isnan(array)]
    return float(known.std()) if known.size else None


def member_metrics(rewards: Floats) -> dict[str, float | None]:
    """Mean, standard deviation and maximum of the reward over members."""
    known = rewards[~np.isnan(rewards)]
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
    known = column[~np.isnan(column)]
    return known.size == 0 or bool(np.ptp(known) == 0.0)


def function_metrics(values: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    """``rewards/<function>/mean`` and ``/std`` over all rollouts."""
    result: dict[str, float | None] = {}
    for name, scores in values.items():
        result[f"rewards/{name}/mean"], result[f"rewards/{name}/std"] = mean(scores), spread(scores)
    return result


def failure_metrics(failed: Mapping[str, int]) -> dict[str, int]:
    """``rewards/<function>/failed``: completions on which the function raised, crashed, hung or returned no number."""
    return {f"rewards/{name}/failed": count for name, count in failed.items()}


def failure_alarms(failed: Mapping[str, int], rollouts: int) -> list[str]:
    """Return an alarm for each reward function that failed on some of the ``rollouts`` completions."""
    return [
        f"the reward function {name!r} failed on {count} of {rollouts} completions: see failures.jsonl."
        for name, count in failed.items()
        if count
    ]


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
    generating = max(0.0, seconds["rollouts"] - times.perturb)
    named = {
        "rollouts": generating,
        "perturb": times.perturb,
        "score": seconds["score"],
        "update": seconds["update"],
    }
    tokens = times.generated_tokens / seconds["rollouts"] if seconds["rollouts"] > 0 else 0.0
    return {
        "step_time": step_time,
        **{f"time/{name}": value for name, value in named.items()},
        "time/other": max(0.0, step_time - sum(named.values())),
        "tokens_per_second": tokens,
    }


def alarms(metrics: Mapping[str, Any], *, moved: bool, generated: bool = True) -> list[str]:
    """Return the problems of a generation, and what to change.

    ``moved``: the update has terms; ``generated``: completions are generated, not reference answers.
    """
    found = []
    if metrics["reward"] is None:
        found.append("no member could be scored: the update is zero. Check the reward function.")
    elif not moved:
        found.append("all members have the same reward: the update is zero. Raise sigma or use more prompts.")
    return found + _text_alarms(metrics) if generated else found


def _text_alarms(metrics: Mapping[str, Any]) -> list[str]:
    found = []
    if metrics["completions/clipped_ratio"] > 0.9:
        found.append("over 90 % of completions hit max_completion_length. Raise it if answers should be longer.")
    if metrics["completions/duplicate_ratio"] > 0.9:
        found.append(
            "over 90 % of completions equal another member's. Raise sigma, unless only few answers are possible."
        )
    if metrics["completions/repeating_ratio"] > 0.5:
        found.append(
            "over half of the completions end in a repetition. If the base model's did not, the weights have moved "
            "too far: lower sigma and alpha."
        )
    return found


def went_back(rollback_to: int | None) -> list[str]:
    """Return the alarm of a rollback."""
    if rollback_to is None:
        return []
    return [
        f"rewards collapsed: back to the model after generation {rollback_to}, and on with half the step. Lower sigma."
    ]


def products_row(info: EngineInfo, generation: int) -> dict[str, Any]:
    """Return the metrics line that says how rewards are computed: the first one, and one at every change."""
    return {"generation": generation, "products": info.products, "arithmetic": dict(info.arithmetic)}


def restored_products(arithmetic: Entry, generation: int) -> dict[str, Any]:
    """Return the same line, rebuilt from the ledger and marked ``restored``."""
    return {"generation": generation, "products": kind(arithmetic), "arithmetic": dict(arithmetic), "restored": True}


def restored(record: Record) -> dict[str, Any]:
    """Rebuild from the ledger the metrics of a generation that were lost in a kill, marked ``restored``."""
    return {
        "generation": record.plan.generation + 1,
        **member_metrics(np.array(record.rewards)),
        "reward_unperturbed": record.reward_unperturbed,
        "sigma": record.plan.sigma,
        "alpha": record.alpha,
        "num_tokens": sum(record.tokens.values()),
        "alarms": [],
        "restored": True,
    }
