"""Early stopping: end a run when a metric of the held-out evaluations no longer improves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seedtune.engines.base import EngineInfo
from seedtune.errors import ConfigError, suggest
from seedtune.run import directory
from seedtune.run.callbacks.base import TrainerControl
from seedtune.run.metrics import evaluation_name


class EarlyStopping:
    """A callback that stops a run after ``patience`` evaluations in a row without an improvement.

    An improvement exceeds the best value so far by more than ``threshold`` (falls below it with
    ``greater_is_better=False``).  The evaluation before training counts as the first.  A resumed run goes on counting
    where it was, by ``metrics.jsonl``.  Raises ConfigError for a ``patience`` below 1, a metric that the evaluations do
    not have, and a run without evaluations during training.
    """

    def __init__(
        self,
        patience: int = 3,
        *,
        metric: str = "eval_reward",
        threshold: float = 0.0,
        greater_is_better: bool = True,
    ) -> None:
        if patience < 1:
            raise ConfigError(f"patience={patience}: give the number of evaluations to wait, 1 or more.")
        self.patience, self.metric, self.threshold = patience, evaluation_name(metric), threshold
        self._sign = 1.0 if greater_is_better else -1.0
        self._best: float | None = None
        self._waited = 0

    def on_start(self, trainer: Any, info: EngineInfo, first: int) -> TrainerControl:
        """Count the evaluations of a resumed run; ConfigError if there will be none during training."""
        config = trainer.config
        if not trainer.task.test or not config.eval_steps:
            missing = "eval_steps=0" if trainer.task.test else f"task {trainer.task.name!r} holds no prompts out"
            raise ConfigError(f"EarlyStopping compares evaluations, but {missing}. Give eval_steps and held-out data.")
        self._best, self._waited = None, 0
        rows = directory.read_lines(trainer.paths.metrics) if first else []
        for row in rows:
            if "eval_reward" in row:
                self._count(row)
        return self._verdict()

    def on_evaluate(self, metrics: Mapping[str, Any]) -> TrainerControl:
        """Compare an evaluation with the best one; ConfigError if it lacks the metric."""
        if self.metric not in metrics:
            known = [name for name in metrics if name.startswith("eval_")]
            raise ConfigError(
                f"metric={self.metric!r} is not among the metrics of an evaluation.{suggest(self.metric, known)} "
                f"Known: {', '.join(known)}."
            )
        self._count(metrics)
        return self._verdict()

    def _count(self, metrics: Mapping[str, Any]) -> None:
        value = metrics.get(self.metric)
        if value is not None and (self._best is None or self._sign * (value - self._best) > self.threshold):
            self._best, self._waited = value, 0
        else:
            self._waited += 1

    def _verdict(self) -> TrainerControl:
        return TrainerControl(should_training_stop=self._waited >= self.patience)
