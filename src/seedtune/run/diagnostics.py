"""Diagnostics of a generation's update: cosine, drift and divergence."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from seedtune.config.config import Config
from seedtune.engines.base import Engine
from seedtune.rollouts.evaluator import Evaluator, Outcome
from seedtune.rollouts.prompts import prompt_of
from seedtune.run.lineage import Lineage
from seedtune.types import Decay, Update

KL_PROMPTS = 8
"""Prompts whose completions measure the divergence."""


def predicted_drift(updates: Sequence[Update], parameters: int) -> float:
    """‖θ − θ₀‖ of a random walk, √(d Σ w²): with z-scores α√(T·d/N) (arXiv 2605.30148).

    The weights of reused noise are summed before they are squared.  An L2 anchor shrinks everything before it; for an
    L1 anchor, elements are assumed to be normal, so that it shrinks their spread by a known factor.
    """
    weights: dict[tuple[int, int], float] = {}
    square, left = 0.0, 1.0  # Σ w² of the stored weights; the true ones are ``left`` times as large
    for update in updates:
        for term in update.terms:
            place = (term.generation, term.pair)
            before = weights.get(place, 0.0)
            weights[place] = before + term.weight / left
            square += weights[place] ** 2 - before**2
        if update.decay is not None:
            left *= _kept(left * math.sqrt(max(0.0, square)), update.decay)
            if left == 0.0:
                weights, square, left = {}, 0.0, 1.0
    return left * math.sqrt(parameters * max(0.0, square))


def _kept(spread: float, decay: Decay) -> float:
    """Factor by which a decay shrinks normal elements' deviation s.

    E (|x| − t)₊² = (s² + t²)·2Q(t/s) − 2ts·φ(t/s).
    """
    factor = 1.0 - decay.l2
    scale = factor * spread
    if decay.l1 == 0.0 or scale == 0.0:
        return factor
    u = decay.l1 / scale
    tail, density = math.erfc(u / math.sqrt(2.0)), math.exp(-u * u / 2.0) / math.sqrt(2.0 * math.pi)
    return factor * math.sqrt(max(0.0, (1.0 + u * u) * tail - 2.0 * u * density))


def measure(evaluator: Evaluator, lineage: Lineage, *, parameters: int) -> dict[str, Any]:
    """Measure the newest generation, after its update was applied to the evaluator's engine.

    ``update_cosine`` is that of the last two updates, about 0 for updates from fresh noise; ``drift`` is measured where
    the fingerprint is recorded, ``kl`` (see `divergence`) every ``kl_steps`` generations and after the last, on the
    same prompts.
    """
    engine, config, task, started = evaluator.engine, evaluator.config, evaluator.task, time.perf_counter()
    found: dict[str, Any] = {}
    if lineage.records[-1].rollback_to is None:
        latest = lineage.latest(2)
        found["update_cosine"] = engine.cosine(latest[0].terms, latest[1].terms) if len(latest) == 2 else None
    done = len(lineage.records)
    if config.due(done, config.fingerprint_steps):
        found["drift"] = engine.drift()
        found["drift_predicted"] = predicted_drift(lineage.updates(done), parameters)
    found["time/diagnostics"] = time.perf_counter() - started
    if config.kl_steps and config.due(done, config.kl_steps):
        examples = (task.test or task.train)[:KL_PROMPTS]
        found["kl"] = divergence(engine, config, evaluator.unperturbed(examples, generation=done, tokens=True))
    return found


def divergence(engine: Engine, config: Config, outcome: Outcome) -> float | None:
    """KL(current ‖ base) in nats per token of the completions; None if they have no tokens.

    The mean of r − log r − 1, r = π_base/π_current.
    """
    prompts = [prompt_of(config, outcome.examples[rollout.prompt]) for rollout in outcome.rollouts]
    answers = [rollout.token_ids for rollout in outcome.rollouts]
    current, base = (engine.logprobs(prompts, answers, base=is_base) for is_base in (False, True))
    pairs = zip(current, base, strict=True)
    logs = np.concatenate([np.array(b) - np.array(o) for o, b in pairs] or [np.zeros(0)])
    engine.take_times()
    return float(np.mean(np.expm1(logs) - logs)) if logs.size else None
