"""Rules for combinations of settings: each says what is wrong, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from seedtune.config.data_and_rewards import OWN_TASK
from seedtune.config.fields import Fields
from seedtune.config.sections import LikelihoodSettings, ScheduleSettings


def check(config: Fields) -> None:
    """Raise ValueError with the message of the first violated rule."""
    rules = (_population, _perturbation, _steps, _look_ahead, _own_data, _chats, _samples, _likelihood, _staleness)
    message = next(chain.from_iterable(rule(config) for rule in rules), None)
    if message is not None:
        raise ValueError(message)


def _population(config: Fields) -> Iterator[str]:
    if config.antithetic and config.population % 2:
        yield (
            f"population={config.population} is odd, but antithetic pairs need an even one: "
            f"use {config.population + 1}, or antithetic=false"
        )
    if config.products in ("fma32", "bf16dot") and "transformers" not in config.kinds:
        yield f"products={config.products} is for the transformers engine: leave it out, or use products=library"
    least = min(config.population, config.lookahead.probes or config.population)
    if 1 < config.subspaces > least // 2:
        yield (
            f"subspaces={config.subspaces} is too many for population={least}: every subspace needs two "
            f"members at least. Use {least // 2} or fewer, or population={2 * config.subspaces} or more"
        )


def _perturbation(config: Fields) -> Iterator[str]:
    if config.perturbation != "lowrank" and config.rank != 1:
        yield (
            f"rank={config.rank} means nothing with perturbation={config.perturbation}: leave it out, "
            "or use perturbation=lowrank"
        )
    if config.perturbation != "flipout" and config.shared_noise != 1:
        yield (
            f"shared_noise={config.shared_noise} means nothing with perturbation={config.perturbation}: leave it out, "
            "or use perturbation=flipout"
        )
    if config.shared_noise > config.population:
        yield (
            f"shared_noise={config.shared_noise} is more than population={config.population}, and members share noise: "
            f"use {config.population} or less"
        )
    if config.perturbation == "flipout" and config.subspaces != 1:
        yield (
            f"subspaces={config.subspaces} does not go with perturbation=flipout: leave it out, or use "
            "perturbation=lowrank or gaussian"
        )


def _steps(config: Fields) -> Iterator[str]:
    if config.rollback_on_fall == "yes" and config.max_staleness:
        yield (
            f"rollback_on_fall=yes does not go with ray.max_staleness={config.max_staleness} (updates do not wait): "
            "leave one out"
        )
    name, pull = ("sigma/2", (config.sigma or 0.0) / 2) if config.alpha is None else ("alpha", config.alpha)
    if pull * config.anchor_l2 > 1.0:
        yield (
            f"{name}={pull:g} times anchor_l2={config.anchor_l2:g} is more than 1: the pull to the base model "
            f"would overshoot it. Use anchor_l2={1.0 / pull:g} or less"
        )


def _look_ahead(config: Fields) -> Iterator[str]:
    look = config.lookahead
    if look.probes is not None and look.radius is None:
        yield f"lookahead.probes={look.probes} needs lookahead.radius, a length: leave probes out, or give both"
    if look.probes is not None and (look.probes > config.population or (config.antithetic and look.probes % 2)):
        even = " and even (antithetic pairs)" if config.antithetic else ""
        yield f"lookahead.probes={look.probes} must be at most population={config.population}{even}"
    if look.radius is not None and config.noise_reuse > 1:
        yield f"noise_reuse={config.noise_reuse}: look-ahead needs fresh noise at θ'; use noise_reuse=1"


def _own_data(config: Fields) -> Iterator[str]:
    if (config.train_dataset is not None or config.reward_funcs) and config.task != OWN_TASK:
        yield f"task={config.task} brings data and rewards of its own: leave it out (or write task={OWN_TASK})"
    if both := set(config.eval_tasks) & config.eval_datasets.keys():
        yield f"eval_dataset and eval_tasks both have {min(both)!r}, and one metric's name: name the set otherwise"
    functions, weights = len(config.reward_funcs), len(config.weights)
    if functions and weights != functions:  # without any, functions may be passed to the ESTrainer
        yield f"{functions} reward functions but {weights} reward_weights: give one weight each"


RENDERING = {
    *("conversation", "messages", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"),
}
"""Arguments of transformers' ``apply_chat_template`` that are no variables of a template."""


def _chats(config: Fields) -> Iterator[str]:
    for name in sorted(RENDERING & config.chat_template_kwargs.keys()):
        yield (
            f"chat_template_kwargs.{name}={config.chat_template_kwargs[name]!r} is no variable of a chat template: "
            "prompts are read whole, as the engine needs them. Leave it out"
        )


def _samples(config: Fields) -> Iterator[str]:
    if config.samples_per_prompt > 1 and config.temperature == 0.0:
        yield (
            f"samples_per_prompt={config.samples_per_prompt} with temperature=0 gives equal samples: "
            "use a temperature above 0, for example 0.7, or samples_per_prompt=1"
        )
    if config.objective in ("pass_at_k", "majority_at_k") and config.samples_per_prompt == 1:
        yield (
            f"objective={config.objective} with samples_per_prompt=1 is the mean: use samples_per_prompt=4, say, "
            "and a temperature above 0, or objective=mean"
        )
    if config.environment is not None and config.kl_steps and not config.uses_likelihood:
        yield f"kl_steps={config.kl_steps} measures single answers, not conversations: use kl_steps=0"


def _likelihood(config: Fields) -> Iterator[str]:
    if not config.uses_likelihood:
        for name, value in config.likelihood:
            if value != LikelihoodSettings.model_fields[name].default:
                yield f"likelihood.{name}={value!r} has no effect: leave it out, or give objective=logprob, too"
        return
    for name in ("samples_per_prompt", "temperature", "top_p", "stop", "stop_token_ids", "kl_steps", "environment"):
        value = getattr(config, name)
        if value != type(config).model_fields[name].default:
            yield (
                f"objective={config.objective} generates nothing, so {name}={value!r} has no effect: leave it out, "
                "or use objective=mean"
            )


def _staleness(config: Fields) -> Iterator[str]:
    """Reject settings that need complete generations with a single σ and a score for every prompt."""
    look, schedule = config.lookahead, config.sigma_schedule
    refused = {
        f"sigma_schedule.kind={schedule.kind}: leave sigma_schedule out": schedule != ScheduleSettings(),
        f"noise_reuse={config.noise_reuse}: use noise_reuse=1": config.noise_reuse > 1,
        f"lookahead.radius={look.radius}: leave lookahead out": look.radius is not None,
        "shaping=per_prompt: use shaping=zscore": config.shaping == "per_prompt",
        "multi_objective_aggregation=normalize_then_sum: use sum_then_normalize": config.multi_objective_aggregation
        == "normalize_then_sum",
        f"environment={config.environment!r}: leave it out": config.environment is not None,
        f"objective={config.objective}: use objective=mean": config.uses_likelihood,
        f"reward_batch={config.reward_batch}: use reward_batch=sample": config.reward_batch != "sample",
    }
    for found in (found for found, wrong in refused.items() if wrong and config.max_staleness):
        yield (
            f"ray.max_staleness={config.max_staleness} (updates do not wait) does not go with {found}, "
            "or ray.max_staleness=0"
        )
