"""The watched prompts of a run: the current model's rewards on them, and the choice of the model to hand out."""

from __future__ import annotations

import math

from seedtune.evaluation import comparison
from seedtune.rollouts.evaluator import Evaluator
from seedtune.run.directory import RunPaths
from seedtune.run.lineage import Lineage
from seedtune.strategies import watch
from seedtune.strategies.base import State
from seedtune.strategies.evidence import Rewards
from seedtune.tasks.base import Task
from seedtune.types import UNPERTURBED


def rewards(evaluator: Evaluator, paths: RunPaths, generation: int, *, evaluated: bool) -> list[float | None]:
    """Return the current model's rewards on the watched prompts, to six digits, None where there is none.

    They are the first held-out prompts, or training prompts if nothing is held out.  If this generation was
    ``evaluated``, its samples are read instead of answering again, unless they are lost.
    """
    examples = (evaluator.task.test or evaluator.task.train)[: watch.WATCHED]
    known = comparison.rewards_of(paths).get(generation) if evaluated else None
    if known is None:
        scores = evaluator.unperturbed(examples, generation=generation).row(UNPERTURBED).tolist()
        known = {one.id: None if math.isnan(score) else score for one, score in zip(examples, scores, strict=True)}
    found = (known.get(example.id) for example in examples)
    return [None if reward is None else float(f"{reward:.6g}") for reward in found]


def looks(lineage: Lineage, state: State, now: Rewards) -> dict[int, Rewards]:
    """Return the watched prompts' rewards by generation: of the base model, of the best one, and ``now``.

    Without those of a run that held other prompts out before it was resumed, as far as their number tells.
    """
    found: dict[int, Rewards] = {0: lineage.records[0].watched}
    if kept := state.get("watch"):
        found[kept["best_at"]] = kept["best"]
    return {at: one for at, one in found.items() if len(one) == len(now)} | {len(lineage.records): now}


def best_evaluated(paths: RunPaths, task: Task) -> int:
    """Return the generation to hand out by all held-out evaluations of a run (`seedtune.strategies.watch.chosen`)."""
    found = comparison.rewards_of(paths)
    return watch.chosen({at: [known.get(example.id) for example in task.test] for at, known in found.items()})
