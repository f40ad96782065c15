"""What costs no training: the base model with the best of several prompts, and with the majority vote of samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from benchmarks.evidence import measure
from benchmarks.evidence.cells import Cell, Point
from benchmarks.evidence.tasks import TASKS, Row, Task

BEST_PROMPT, VOTE = "best of several prompts", "majority vote"


def run(cell: Cell) -> Row:
    """Measure the base model, and then with the better prompt or the vote."""
    from seedtune import engines

    task = TASKS[cell.task]
    rows = measure.rows_of(cell.purpose, task.data())
    config = measure.config(cell.model, task)
    engine = engines.create(config)
    engine.load()
    start = measure.of_engine(engine, config, task, rows)
    if cell.method == VOTE:
        rollouts, found = _vote(engine, config.replace(seed=cell.seed, **cell.settings), task, rows)
        more: Row = {}
    else:
        rollouts, found, more = _best_prompt(engine, config, task, rows)
    engine.close()
    points = [Point(0, 0.0, 0.0, start), Point(rollouts, 0.0, 0.0, found)]
    return {"points": [vars(point) for point in points], "peak_mb": measure.peak_mb(), **more}


def _vote(engine: Any, config: Any, task: Task, rows: list[Row]) -> tuple[int, Row]:
    """The most frequent of as many samples as a run of the task may spend: the first of those that tie."""
    from seedtune.types import UNPERTURBED

    samples = max(1, task.rollouts // len(rows))
    evaluator, examples = measure.evaluator(engine, config.replace(samples_per_prompt=samples), task, rows)
    outcome = evaluator.unperturbed(examples, generation=0)
    made: dict[int, list[str]] = {}
    for rollout, _ in sorted(outcome.of(UNPERTURBED), key=lambda pair: (pair[0].prompt, pair[0].sample)):
        made.setdefault(rollout.prompt, []).append(rollout.text.strip())
    texts = [Counter(made[place]).most_common(1)[0][0] for place in range(len(rows))]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    rewards = task.reward(completions=texts, **columns)
    return samples * len(rows), {"reward": float(np.mean(rewards)), "samples": samples}


def _best_prompt(engine: Any, config: Any, task: Task, rows: list[Row]) -> tuple[int, Row, Row]:
    """Of seedtune's wordings, the one with the highest reward on training prompts."""
    from seedtune.evaluation import prompt_baseline
    from seedtune.evaluation.held_out import EvalConfig
    from seedtune.rollouts.prepare import prepare
    from seedtune.tasks.from_config import TaskInputs

    train = task.data().train
    prepared = prepare(config, TaskInputs(task.reward, None, train, rows, None)).task
    wording = prompt_baseline.choose(engine, prepared, config, EvalConfig())
    put, settings = prompt_baseline.reworded(wording, prepared, config)
    reworded = [{**row, "prompt": list(example.prompt)} for row, example in zip(rows, put.test, strict=True)]
    found = measure.of_engine(engine, settings, task, reworded)
    spent = len(prompt_baseline.WORDINGS) * min(len(train), prompt_baseline.CHOSEN_ON)
    return spent, found, {"wording": wording.name}


def is_baseline(method: str) -> bool:
    """Whether a method trains nothing."""
    return method in (BEST_PROMPT, VOTE)
