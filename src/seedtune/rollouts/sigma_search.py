"""Find the σ of a run to which none was given, by measurements on the model; the rule is `strategies.sigma_rule`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from seedtune import activities
from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.errors import ConfigError
from seedtune.rollouts.prompts import prompt_of, sampling_of
from seedtune.strategies import sigma_rule
from seedtune.strategies.sigma_rule import Measurement
from seedtune.tasks.base import Task
from seedtune.types import UNPERTURBED, Job, Member, Prompt

GENERATION = 2**31
"""Generation of the noise of measurements; a run would need two billion generations to reach it."""

PAIRS, PROMPTS, TOKENS = 2, 8, 32
"""Members (±ε), training prompts, and tokens of the model's greedy answer to each."""


def search(engine: Engine, config: Config, task: Task) -> tuple[Measurement, ...]:
    """Measure the loss of members at one σ after the other, until `seedtune.strategies.sigma_rule` knows enough.

    The loss is the mean of log p(answer token; θ) − log p(answer token; member) over the unperturbed model's own greedy
    answers, in nats per token.  Raises ConfigError if the model answers nothing.
    """
    with activities.doing("measuring σ") as busy:
        prompts = answered(engine, config, task)
        measured: list[Measurement] = []
        while (sigma := sigma_rule.following(measured)) is not None:
            measured.append(Measurement(sigma, loss(engine, config, prompts, sigma)))
            busy.done += 1
    engine.take_times()
    return tuple(measured)


def loss(engine: Engine, config: Config, prompts: Sequence[Prompt], sigma: float) -> float:
    """Return the mean loss of members at ``sigma`` on the prompts' answers, in nats per token, to six digits."""
    signs = (1, -1) if config.antithetic else (1,)
    members = tuple(Member(GENERATION, pair, sign) for pair in range(PAIRS * 2 // len(signs)) for sign in signs)
    job = Job(0, sigma, (UNPERTURBED, *members), tuple(prompts), sampling_of(config))
    sums = dict.fromkeys(job.members, 0.0)
    found = sorted(engine.likelihoods([job]), key=lambda each: (each.prompt, each.member))
    for likelihood in found:
        sums[likelihood.member] += math.fsum(likelihood.logprobs)
    tokens = sum(len(each.logprobs) for each in found if each.member == UNPERTURBED)
    value = (sums[UNPERTURBED] - math.fsum(sums[member] for member in members) / len(members)) / tokens
    return float(f"{value:.6g}") if math.isfinite(value) else sigma_rule.BROKEN


def answered(engine: Engine, config: Config, task: Task) -> tuple[Prompt, ...]:
    """Return training prompts with the unperturbed model's greedy answers; ConfigError if all are empty."""
    prompts = tuple(prompt_of(config, example) for example in task.train[:PROMPTS])
    limit = min(TOKENS, config.max_completion_length)
    sampling = replace(sampling_of(config), temperature=0.0, top_p=1.0, samples=1, max_tokens=limit)
    rollouts = engine.evaluate([Job(0, 0.0, (UNPERTURBED,), prompts, sampling)])
    texts = {rollout.prompt: rollout.text for rollout in rollouts}
    found = tuple(replace(prompts[place], answers=(texts[place],)) for place in sorted(texts) if texts[place].strip())
    if not found:
        raise ConfigError(
            f"sigma cannot be measured: the model answers {len(prompts)} training prompts with nothing. Give sigma, "
            "say 0.001, or check the prompts and the chat template."
        )
    return found
