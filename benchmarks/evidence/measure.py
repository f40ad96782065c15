"""How every model is measured, whichever method made it: greedy answers by seedtune's engine, float32, fixed sums."""

from __future__ import annotations

import math
import resource
from typing import Any

import numpy as np

from benchmarks.evidence.tasks import Row, Rows, Task, model_path

EXACT: Row = {"dtype": "float32", "products": "fma32", "reward_workers": 0}
"""Of every engine here: answers are equal on every processor with FMA."""

TUNED_ON = 256
"""Training prompts on which short runs are compared."""


def config(model: str, task: Task) -> Any:
    """The settings of a measurement."""
    from seedtune import ESConfig

    return ESConfig.create({**EXACT, "model": model_path(model), "max_completion_length": task.length})


def evaluator(engine: Any, asked: Any, task: Task, rows: list[Row]) -> tuple[Any, Any]:
    """An evaluator of rows, and the rows as it takes them."""
    from seedtune.rollouts.evaluator import Evaluator
    from seedtune.rollouts.prepare import prepare
    from seedtune.tasks.from_config import TaskInputs

    prepared = prepare(asked, TaskInputs(task.reward, None, rows, rows, None)).task
    return Evaluator(engine, prepared, asked), prepared.test


def of_engine(engine: Any, asked: Any, task: Task, rows: list[Row]) -> Row:
    """Mean reward of greedy answers, its standard error, and what the reward may not pay for."""
    from seedtune.types import UNPERTURBED

    greedy, examples = evaluator(engine, asked.replace(temperature=0.0, samples_per_prompt=1), task, rows)
    outcome = greedy.unperturbed(examples, generation=0)
    rewards = np.nan_to_num(outcome.row(UNPERTURBED))
    answers = {rollout.prompt: rollout.text for rollout, _ in outcome.of(UNPERTURBED)}
    texts = [answers[place] for place in sorted(answers)]
    made: Row = {"reward": float(rewards.mean()), "error": float(rewards.std(ddof=1) / math.sqrt(len(rewards)))}
    made["empty"] = sum(not text.strip() for text in texts) / len(texts)
    made["characters"] = sum(map(len, texts)) / len(texts)
    if task.right is not None:
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        made["right"] = float(np.mean(task.right(texts, **columns)))
        made["texts"] = texts
    return made


def folder(model: str) -> str:
    """The Hugging Face folder of a model by its name."""
    from seedtune.config.paths import BUILTIN_MODELS
    from seedtune.engines.transformers.builtin_models import builtin_folder

    return str(builtin_folder(model)) if model in BUILTIN_MODELS else model_path(model)


def divergence(base: str, tuned: str, rows: list[Row], texts: list[str]) -> float:
    """KL of a model from its base, in nats per token of its own answers: the mean of r − ln r − 1, r = p_base/p.

    Both models are Hugging Face's in float32 (arXiv 2509.24372 has this estimator).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    places = folder(base), tuned
    words = AutoTokenizer.from_pretrained(places[0])
    models = [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in places]
    total, count = 0.0, 0
    for row, text in zip(rows, texts, strict=True):
        start = words.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        answer = [*words.encode(text, add_special_tokens=False), words.eos_token_id]
        ids = torch.tensor([[*start, *answer]])
        with torch.no_grad():
            logs = [torch.log_softmax(model(ids).logits[0, len(start) - 1 : -1], -1) for model in models]
        before, now = (log.gather(1, ids[0, len(start) :, None])[:, 0] for log in logs)
        apart = before - now
        total += float((apart.exp() - apart - 1).sum())
        count += len(answer)
    return total / count


def of_folder(model: str, task: Task, rows: list[Row]) -> Row:
    """The same of a model by its name or in a folder."""
    from seedtune import engines

    engine = engines.create(config(model, task))
    engine.load()
    try:
        return of_engine(engine, config(model, task), task, rows)
    finally:
        engine.close()


def rows_of(purpose: str, rows: Rows) -> list[Row]:
    """Rows to measure on: short runs are compared on training prompts."""
    return rows.train[:TUNED_ON] if purpose == "tune" else rows.held_out


def peak_mb() -> float:
    """Most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
