"""A run of GRPO by TRL's GRPOTrainer, with its defaults but for what is tuned."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.evidence import measure
from benchmarks.evidence.cells import POINTS, Cell, Point
from benchmarks.evidence.tasks import TASKS, Row


def run(cell: Cell) -> Row:
    """Train in float32, then measure the models at points on the way."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    task = TASKS[cell.task]
    rows = task.data()
    size = task.grpo["prompts"] * task.grpo["group"]
    steps = int(task.rollouts * cell.share) // size
    at = sorted({max(1, round(part * steps)) for part in (POINTS if cell.purpose != "tune" else (1.0,))})
    with tempfile.TemporaryDirectory() as scratch:
        model, words = _loaded(cell.model)
        points: dict[int, Point] = {}
        started, paused = time.perf_counter(), [0.0]

        class Meter(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step in at:
                    flops = 8.0 * parameters * state.num_input_tokens_seen
                    now = time.perf_counter()
                    points[state.global_step] = Point(size * state.global_step, flops, now - started - paused[0])
                    _saved(model, words, Path(scratch) / str(state.global_step))
                    paused[0] += time.perf_counter() - now

        parameters = sum(weight.numel() for weight in model.parameters())
        config = GRPOConfig(
            output_dir=f"{scratch}/run",
            per_device_train_batch_size=size,
            num_generations=task.grpo["group"],
            max_completion_length=task.length,
            max_steps=steps,
            seed=cell.seed,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            logging_steps=10,
            disable_tqdm=True,
            **cell.settings,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=task.reward,
            args=config,
            train_dataset=Dataset.from_list(rows.train),
            processing_class=words,
            callbacks=[Meter()],
        )
        trainer.train()
        memory, held = measure.peak_mb(), measure.rows_of(cell.purpose, rows)
        for step, point in points.items():
            point.measured = measure.of_folder(f"{scratch}/{step}", task, held)
            if "texts" in point.measured and cell.purpose == "result":
                texts = point.measured["texts"]
                point.measured["kl"] = measure.divergence(cell.model, f"{scratch}/{step}", held, texts)
        curve = [vars(point) | {"generation": step} for step, point in points.items()]
        if cell.purpose != "tune":
            curve.insert(0, vars(Point(0, 0.0, 0.0, measure.of_folder(cell.model, task, held))) | {"generation": 0})
    return {"points": curve, "peak_mb": memory}


def _loaded(name: str) -> tuple[Any, Any]:
    """The model in float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = measure.folder(name)
    words = AutoTokenizer.from_pretrained(place)
    return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32), words


def _saved(model: Any, words: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    words.save_pretrained(folder)
