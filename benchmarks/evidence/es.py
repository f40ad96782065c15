"""A run of an evolution strategy by seedtune."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.evidence import measure
from benchmarks.evidence.cells import POINTS, Cell, Point
from benchmarks.evidence.tasks import TASKS, Row, model_path

ENDLESS = 100_000
"""Generations: the budget of rollouts ends the run."""


class Meter:
    """A callback that counts what a run costs, and ends it when its budget is spent.

    Rollouts are all that the engine answers, and the passes by which σ is found.  The FLOPs of those passes are not
    counted: half a per cent of a run's.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.rollouts, self.tokens = budget, 0, 0
        self.points = {0: Point(0, 0.0, 0.0)}
        self._started = time.perf_counter()

    def on_start(self, trainer: Any, info: Any, first: int) -> None:
        """Count every rollout of the engine from here on, and those by which σ was found."""
        self._trainer, self._parameters = trainer, info.coverage.total
        searched = len(trainer.session.measured)
        self.rollouts += (8 + 40 * searched) if searched else 0
        trainer.engine.evaluate = self._counted(trainer.engine.evaluate)

    def on_generation(self, metrics: Row) -> None:
        """A point of the curve; stop where the next generation would be more than the budget."""
        self.tokens += metrics["num_tokens"]
        spent = time.perf_counter() - self._started
        self.points[metrics["generation"]] = Point(self.rollouts, 2.0 * self._parameters * self.tokens, spent)
        if self.rollouts * (1 + 1 / (len(self.points) - 1)) > self.budget:
            self._trainer.control.should_training_stop = True

    def _counted(self, evaluate: Callable[..., Iterable[Any]]) -> Callable[..., Iterator[Any]]:
        def counted(*arguments: Any, **options: Any) -> Iterator[Any]:
            for rollout in evaluate(*arguments, **options):
                self.rollouts += 1
                yield rollout

        return counted


def run(cell: Cell, folder: Path) -> Row:
    """Train, then measure the models at points on the way; the run's directory stays in ``folder``."""
    import seedtune.engines.transformers  # noqa: F401 - sets how OpenMP waits, before torch is imported
    from seedtune import ESConfig, ESTrainer

    task = TASKS[cell.task]
    rows = task.data()
    settings = {
        **measure.EXACT,
        "model": model_path(cell.model),
        "output_dir": str(folder),
        "prompts_per_generation": task.prompts,
        "max_completion_length": task.length,
        "generations": ENDLESS,
        "population": 32,
        "save_steps": 0,
        "eval_size": 0.0,
        "fingerprint_steps": 1,
        "seed": cell.seed,
        **cell.settings,
    }
    meter = Meter(int(task.rollouts * cell.share))
    args = ESConfig.create(settings)
    trainer = ESTrainer(args=args, reward_funcs=task.reward, train_dataset=rows.train, callbacks=[meter])
    trainer.train()
    memory, held = measure.peak_mb(), measure.rows_of(cell.purpose, rows)
    wanted = _points(meter) if cell.purpose != "tune" else [trainer.generation]
    for generation in {*wanted, trainer.session.chosen}:
        with trainer.session.at(generation) as (engine, _):
            measured = measure.of_engine(engine, measure.config(cell.model, task), task, held)
        if "texts" in measured and generation and cell.purpose == "result":
            with tempfile.TemporaryDirectory() as place:
                trainer.save_model(place, generation=generation)
                measured["kl"] = measure.divergence(cell.model, place, held, measured["texts"])
        meter.points[generation].measured = measured
    return {
        "points": [vars(meter.points[generation]) | {"generation": generation} for generation in wanted],
        "handed_out": meter.points[trainer.session.chosen].measured | {"generation": trainer.session.chosen},
        "sigma": trainer.config.sigma,
        "peak_mb": memory,
        "fingerprint": trainer.load().fingerprint(),
    }


def _points(meter: Meter) -> list[int]:
    """Generations before the first, and nearest to each share of the budget."""
    last = max(meter.points)
    nearest = [
        min(meter.points, key=lambda g, p=part: abs(meter.points[g].rollouts - p * meter.budget)) for part in POINTS
    ]
    return sorted({0, *nearest, last})
