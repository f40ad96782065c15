"""Rollouts without generation: score each member by its log-probabilities of reference answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.rollouts.objectives import LIKELIHOODS
from seedtune.tasks.reference_answers import reference_answers
from seedtune.types import Example, Job, Likelihood, Member, Rollout


def rollouts(engine: Engine, config: Config, jobs: Sequence[Job], examples: Sequence[Example]) -> Iterator[Rollout]:
    """Yield a rollout per member and prompt: the chosen answer with the score of the configured objective."""
    asked = [reference_answers(config, example) for example in examples]
    filled = [
        replace(job, prompts=tuple(replace(p, answers=g.answers) for p, g in zip(job.prompts, asked, strict=True)))
        for job in jobs
    ]
    open_: dict[tuple[int, Member, int], list[Likelihood]] = {}
    for likelihood in engine.likelihoods(filled):
        place = (likelihood.job, likelihood.member, likelihood.prompt)
        answers = open_.setdefault(place, [])
        answers.append(likelihood)
        if len(answers) == len(asked[likelihood.prompt].answers):
            del open_[place]
            yield _rollout(config, answers, asked[likelihood.prompt].answers, asked[likelihood.prompt].right)


def _rollout(config: Config, found: list[Likelihood], answers: Sequence[str], right: int) -> Rollout:
    found.sort(key=lambda likelihood: likelihood.answer)
    chosen, value = LIKELIHOODS[config.objective]([likelihood.logprobs for likelihood in found], right)
    best = found[chosen]
    return Rollout(
        job=best.job,
        member=best.member,
        prompt=best.prompt,
        sample=0,
        text=answers[chosen],
        token_ids=best.token_ids,
        prompt_tokens=best.prompt_tokens,
        finish="stop",
        scores=(value,),
    )
