"""A training loop of your own: ask a strategy for members, let an engine answer for each, and tell it their scores."""

from __future__ import annotations

from typing import Any

import numpy as np

from seedtune import ESConfig, Feedback, Job, Prompt, Sampling, engines, strategies, update_of

QUESTIONS = ("What is the capital of France?", "Why is the sky blue?", "Name three colours.", "Who wrote Hamlet?")


def main(generations: int = 10, tokens: int = 48, **settings: Any) -> str:
    """Train for short answers; return the fingerprint of the weights."""
    config = ESConfig(**{"sigma": 0.006, "alpha": 0.003, "population": 16, **settings})
    strategy, state, engine = strategies.create(config), {}, engines.create(config)
    engine.load()
    prompts = tuple(Prompt(number, ({"role": "user", "content": text},)) for number, text in enumerate(QUESTIONS))
    for generation in range(generations):
        plan = strategy.ask(state, generation)
        scores = np.full((len(plan.members), len(prompts)), np.nan)
        job = Job(0, plan.sigma, plan.members, prompts, Sampling(max_tokens=tokens, generation=generation))
        for rollout in engine.evaluate([job]):  # in any order
            scores[plan.members.index(rollout.member), rollout.prompt] = -len(rollout.text)
        step = strategy.tell(state, plan, Feedback(scores))
        engine.apply(update_of(plan, step.coefficients, step.alpha, step.decay))
        state = step.state
        print(f"generation {generation + 1}: mean reward {scores.mean():.1f}")
    fingerprint = engine.fingerprint()
    engine.close()
    return fingerprint


if __name__ == "__main__":
    main()
