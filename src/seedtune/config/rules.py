"""Rules for combinations of settings: each check returns an error message with the fix, or None."""

from __future__ import annotations

from collections.abc import Callable

from seedtune.config.fields import Fields
from seedtune.config.sections import (
    LikelihoodSettings,
    LookAheadSettings,
    ScheduleSettings,
    Section,
)


def _pairs(config: Fields) -> str | None:
    if config.antithetic and config.population % 2:
        return (
            f"population={config.population} is odd, but antithetic pairs need an even one: "
            f"use {config.population + 1}, or antithetic=false"
        )
    return None


def _rank(config: Fields) -> str | None:
    if config.perturbation != "lowrank" and config.rank != 1:
        return (
            f"rank={config.rank} means nothing with perturbation={config.perturbation}: leave it out, "
            "or use perturbation=lowrank"
        )
    return None


def _samples(config: Fields) -> str | None:
    if config.samples_per_prompt > 1 and config.temperature == 0.0:
        return (
            f"samples_per_prompt={config.samples_per_prompt} with temperature=0 gives equal samples: "
            "use a temperature above 0, for example 0.7, or samples_per_prompt=1"
        )
    if config.objective != "mean" and not config.uses_likelihood and config.samples_per_prompt == 1:
        return (
            f"objective={config.objective} with samples_per_prompt=1 is the mean: use samples_per_prompt=4, say, "
            "and a temperature above 0, or objective=mean"
        )
    return None


def _likelihood(config: Fields) -> str | None:
    if not config.uses_likelihood:
        return _unused("likelihood", config.likelihood, LikelihoodSettings(), "objective=logprob")
    told = f"objective={config.objective} generates nothing"
    for name in ("samples_per_prompt", "temperature", "top_p", "stop"):
        if getattr(config, name) != type(config).model_fields[name].default:
            return f"{told}, so {name}={getattr(config, name)!r} has no effect: leave it out, or use objective=mean"
    if config.kl_steps:
        return f"{told}, but kl_steps={config.kl_steps} measures generated answers: use kl_steps=0"
    if config.environment is not None:
        return f"{told}, so environment={config.environment!r} is not heard: leave it out, or use objective=mean"
    return None


def _conversation(config: Fields) -> str | None:
    if config.environment is not None and config.kl_steps:
        return f"kl_steps={config.kl_steps} measures single answers, not conversations: use kl_steps=0"
    return None


def _smallest(config: Fields) -> int:
    """Return the size of the smallest generation."""
    return min(config.population, config.lookahead.probes) if config.lookahead.kind == "essam_f" else config.population


def _subspaces(config: Fields) -> str | None:
    least = _smallest(config)
    if config.subspaces > 1 and config.subspaces > least // 2:
        return (
            f"subspaces={config.subspaces} is too many for population={least}: every subspace needs two "
            f"members at least. Use {least // 2} or fewer, or population={2 * config.subspaces} or more"
        )
    return None


def _step(config: Fields) -> str | None:
    samples = config.population // (2 if config.antithetic else 1)
    comparing = {
        "adaptive steps": config.adaptive,
        "rollback_on_collapse=yes": config.rollback_on_collapse == "yes",
    }
    who = next((name for name, on in comparing.items() if on), None)
    if who is not None and samples < 2:
        return (
            f"population={config.population} has one noise sample only, but {who} need to compare at least two: "
            f"use population={4 if config.antithetic else 2} or more" + (", or give alpha" if config.adaptive else "")
        )
    if not config.adaptive and config.max_step_ratio is not None:
        return (
            f"max_step_ratio={config.max_step_ratio:g} is for adaptive steps: leave it out, or use step_size=adaptive"
        )
    pull = config.sigma / 2 if config.adaptive else config.step
    if pull * config.anchor_l2 > 1.0:
        name = "sigma/2" if config.adaptive else "alpha"
        return (
            f"{name}={pull:g} times anchor_l2={config.anchor_l2:g} is more than 1: the pull to the base model "
            f"would overshoot it. Use anchor_l2={1.0 / pull:g} or less"
        )
    return None


def _look_ahead(config: Fields) -> str | None:
    look, even = config.lookahead, " and even (antithetic pairs)" if config.antithetic else ""
    if look.kind == "none":
        return _unused("lookahead", look, LookAheadSettings(), "lookahead.kind=essam")
    if look.radius is None:
        return (
            f"lookahead.kind={look.kind} needs lookahead.radius: for essam a factor like alpha (try sigma/5), for "
            "essam_f a length (a member's perturbation is sigma·√parameters long; try a tenth of that)"
        )
    if look.kind == "essam" and look.probes != LookAheadSettings().probes:
        return f"lookahead.probes={look.probes} is for essam_f: leave it out, or use lookahead.kind=essam_f"
    if look.kind == "essam_f" and (look.probes > config.population or (config.antithetic and look.probes % 2)):
        return f"lookahead.probes={look.probes} must be at most population={config.population}{even}"
    if config.noise_reuse > 1:
        return f"noise_reuse={config.noise_reuse}: look-ahead needs fresh noise at θ'; use noise_reuse=1"
    return None


def _max_staleness(config: Fields) -> str | None:
    """Reject settings that need complete generations with a single σ and a score for every prompt."""
    look, schedule = config.lookahead.kind, config.sigma_schedule
    checks: tuple[tuple[bool, str, str], ...] = (
        (config.adaptive, f"alpha {config.step_words()}", f"give alpha (sigma/2 is {config.sigma / 2:g})"),
        (schedule != ScheduleSettings(), f"sigma_schedule.kind={schedule.kind}", "leave sigma_schedule out"),
        (config.noise_reuse > 1, f"noise_reuse={config.noise_reuse}", "use noise_reuse=1"),
        (look != "none", f"lookahead.kind={look}", "use lookahead.kind=none"),
        (config.guarded, f"rollback_on_collapse={config.rollback_on_collapse}", "use rollback_on_collapse=no"),
        (config.shaping == "per_prompt", "shaping=per_prompt", "use shaping=zscore"),
        (
            config.multi_objective_aggregation != "sum_then_normalize",
            f"multi_objective_aggregation={config.multi_objective_aggregation}",
            "use sum_then_normalize",
        ),
        (config.environment is not None, f"environment={config.environment!r}", "leave it out"),
        (config.uses_likelihood, f"objective={config.objective}", "use objective=mean"),
        (config.reward_batch != "sample", f"reward_batch={config.reward_batch}", "use reward_batch=sample"),
    )
    for wrong, found, fix in checks if config.max_staleness else ():
        if wrong:
            return (
                f"ray.max_staleness={config.max_staleness} (updates do not wait) does not go with {found}: {fix}, "
                "or ray.max_staleness=0"
            )
    return None


def _own_data(config: Fields) -> str | None:
    own, weights = config.train_dataset is not None or bool(config.reward_funcs), config.reward_weights
    if own and config.task != "custom":
        return f"task={config.task} brings data and rewards of its own: leave it out (or write task=custom)"
    if weights is None or not config.reward_funcs:  # functions may be passed to the Trainer
        return None
    if len(weights) != len(config.reward_funcs):
        return f"{len(config.reward_funcs)} reward functions but {len(weights)} reward_weights: give one weight each"
    twice = [reward.label for reward in config.reward_funcs if reward.weight != 1.0]
    return f"the weight of {twice[0]!r} is given twice: in reward_funcs and in reward_weights" if twice else None


def _unused(name: str, found: Section, default: Section, switch: str) -> str | None:
    """Reject settings in a section that is switched off."""
    changed = [key for key in type(found).model_fields if getattr(found, key) != getattr(default, key)]
    if not changed:
        return None
    return f"{name}.{changed[0]}={getattr(found, changed[0])!r} has no effect: leave it out, or give {switch}, too"


CHECKS: tuple[Callable[[Fields], str | None], ...] = (
    _pairs, _rank, _samples, _subspaces, _step, _look_ahead, _own_data,
    _likelihood, _conversation, _max_staleness,
)  # fmt: skip


def check(config: Fields) -> None:
    """Raise ValueError with the message of the first violated rule."""
    for one in CHECKS:
        told = one(config)
        if told is not None:
            raise ValueError(told)
