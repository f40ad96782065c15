"""What callbacks may ask of the trainer, early stopping, and the best generation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import runs
import seedtune
from ray_workers import inline, ray_config
from seedtune.config.config import Config
from seedtune.engines import snapshots
from seedtune.errors import ConfigError, RunError
from seedtune.run import directory, metrics
from seedtune.run.artifacts.verify import verify_run
from seedtune.run.callbacks.base import TrainerControl
from seedtune.run.callbacks.early_stopping import EarlyStopping
from seedtune.trainer import ESTrainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run without callbacks."""
    root = tmp_path_factory.mktemp("straight") / "run"
    ESTrainer(args=runs.toy(root)).train()
    return root


class Asking:
    """Asks for something after one generation, by returning a control or by setting the trainer's."""

    def __init__(self, after: int, *, sets: bool = False, **flags: bool) -> None:
        self.after, self.sets, self.flags = after, sets, flags
        self.heard: list[str] = []

    def on_start(self, trainer, info, first):
        self.trainer = trainer

    def on_generation(self, metrics):
        self.heard.append(f"generation {metrics['generation']}")
        if metrics["generation"] != self.after:
            return None
        if self.sets:
            for name, value in self.flags.items():
                setattr(self.trainer.control, name, value)
            return None
        return TrainerControl(**self.flags)

    def on_evaluate(self, metrics):
        self.heard.append(f"evaluation {metrics['generation']}")

    def on_end(self, trainer):
        self.heard.append("end")


def trained(config: Config, *callbacks) -> ESTrainer:
    trainer = ESTrainer(args=config, callbacks=callbacks)
    trainer.train()
    return trainer


@pytest.mark.parametrize("sets", [True, False], ids=["set", "returned"])
def test_a_stop_is_clean_and_the_run_can_be_resumed_to_the_same_bits(tmp_path, straight, sets):
    root, asking = tmp_path / "run", Asking(3, sets=sets, should_training_stop=True)
    trainer = trained(runs.toy(root), asking)
    assert trainer.generation == 3
    assert asking.heard[-3:] == ["generation 3", "evaluation 3", "end"]
    assert directory.RunPaths(root).report.is_file()
    assert next(found.generations for found in snapshots.listing(root / "snapshots")) == 3
    assert runs.ledger_bytes(straight).startswith(runs.ledger_bytes(root))
    assert verify_run(root).contents.generations == 3

    again = ESTrainer(args=runs.toy(root))
    again.train(resume_from_checkpoint=True)
    assert again.generation == 5
    assert runs.ledger_bytes(root) == runs.ledger_bytes(straight)
    assert runs.fingerprint(root) == runs.fingerprint(straight)


def test_evaluations_and_snapshots_that_are_asked_for_come_at_once_and_once(tmp_path, straight):
    root, asking = tmp_path / "run", Asking(3, should_evaluate=True, should_save=True)
    trained(runs.toy(root, save_total_limit=9), asking)
    evaluated = [line.split()[1] for line in asking.heard if line.startswith("evaluation")]
    assert evaluated == ["0", "2", "3", "4", "5"]
    assert sorted(found.generations for found in snapshots.listing(root / "snapshots")) == [2, 3, 4, 5]
    assert runs.ledger_bytes(root) == runs.ledger_bytes(straight)


def test_a_callback_that_stops_at_the_start_trains_nothing(tmp_path):
    class Never:
        def on_start(self, trainer, info, first):
            return TrainerControl(should_training_stop=True)

    trainer = ESTrainer(args=runs.toy(tmp_path), callbacks=[Never()])
    assert trainer.train()["generation"] == 0
    assert trainer.generation == 0
    trainer.callbacks = ()
    trainer.train(resume_from_checkpoint=True)
    assert trainer.generation == 5


def test_what_a_callback_returns_besides_a_control_means_nothing(tmp_path, straight):
    class Returning:
        def on_generation(self, metrics):
            return True

    trained(runs.toy(tmp_path / "run"), Returning())
    assert runs.ledger_bytes(tmp_path / "run") == runs.ledger_bytes(straight)


@pytest.mark.parametrize("ray", [{"workers": 2}, {"workers": 4, "max_staleness": 2}], ids=["waiting", "asynchronous"])
def test_a_run_of_workers_stops_saves_an_earlier_generation_and_goes_on(tmp_path, ray):
    root, settings = tmp_path / "run", {"alpha": 0.1, "generations": 8, "population": 16, "members_per_job": 2}
    config = ray_config(root, **settings, fingerprint_steps=1, ray=ray)
    with inline(seed=4):
        trainer = trained(config, Asking(4, should_training_stop=True))
        assert trainer.generation == 4
        trainer.save_model(tmp_path / "saved", generation=2)
    seedtune.export_run(root, tmp_path / "exported", generation=2)
    assert same(tmp_path / "saved", tmp_path / "exported")
    with inline(seed=5):
        ESTrainer(args=config).train(resume_from_checkpoint=True)
    assert verify_run(root).matched == tuple(range(1, 9))


# ------------------------------------------------------------------------------ early stopping


def stopped_at(values: list[float | None], **settings) -> int | None:
    """The place of the evaluation at which early stopping ends a run with these values."""
    stopping = EarlyStopping(**settings)
    for place, value in enumerate(values):
        if stopping.on_evaluate({"eval_reward": value, "eval_kl": value}).should_training_stop:
            return place
    return None


@pytest.mark.parametrize(
    ("values", "settings", "place"),
    [
        ([1, 2, 3, 4], {"patience": 1}, None),
        ([1, 2, 2, 3], {"patience": 1}, 2),
        ([1, 0, 0, 2, 1, 1, 1], {"patience": 3}, 6),
        ([1, 1.05, 1.1, 1.3], {"patience": 2, "threshold": 0.2}, 2),
        ([3, 2, 1, 1, 1], {"patience": 2, "metric": "kl", "greater_is_better": False}, 4),
        ([1, None, None, 2], {"patience": 2}, 2),
        ([None, 1, 2], {"patience": 2}, None),
    ],
)
def test_early_stopping_waits_for_improvements(values, settings, place):
    assert stopped_at(values, **settings) == place


def test_a_run_that_was_stopped_early_counts_on_after_an_interruption(tmp_path):
    def stopping() -> EarlyStopping:
        return EarlyStopping(2, threshold=1e9)

    class Interrupting:
        def on_generation(self, metrics):
            raise KeyboardInterrupt

    settings = {"generations": 9, "eval_steps": 1}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert trained(runs.toy(whole, **settings), stopping()).generation == 2
    trainer = ESTrainer(args=runs.toy(cut, **settings), callbacks=[stopping(), Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    for _ in range(2):  # what was stopped stays stopped
        resumed = ESTrainer(args=runs.toy(cut, **settings), callbacks=[stopping()])
        resumed.train(resume_from_checkpoint=True)
        assert resumed.generation == 2
    assert runs.ledger_bytes(cut) == runs.ledger_bytes(whole)


@pytest.mark.parametrize(
    ("settings", "stopping", "message"),
    [
        ({"eval_steps": 0}, {}, "EarlyStopping compares evaluations, but eval_steps=0. Give eval_steps"),
        ({}, {"metric": "rewad"}, r"'eval_rewad' is not among the metrics .* Did you mean 'eval_reward'\?"),
    ],
)
def test_early_stopping_that_could_never_stop_is_refused(tmp_path, settings, stopping, message):
    with pytest.raises(ConfigError, match=message):
        trained(runs.toy(tmp_path, **settings), EarlyStopping(**stopping))
    with pytest.raises(ConfigError, match="patience=0: give the number of evaluations"):
        EarlyStopping(0)


# ----------------------------------------------------------------------------- best generation

ROWS = [
    {"generation": 0, "eval_reward": 1.0, "eval_kl": 0.0},
    {"generation": 1, "reward": 99.0},
    {"generation": 2, "eval_reward": 3.0, "eval_kl": 2.0},
    {"generation": 4, "eval_reward": 3.0, "eval_kl": None},
    {"generation": 5, "eval_reward": None, "eval_kl": 5.0},
]


@pytest.mark.parametrize(
    ("choice", "generation"),
    [("best", 2), ("best:reward", 2), ("best:eval_kl", 5), ("lowest:kl", 0), ("lowest:eval_reward", 0)],
)
def test_the_best_generation_is_that_of_the_best_evaluation_and_of_equal_ones_the_first(choice, generation):
    assert metrics.best_generation(ROWS, choice) == generation


def test_a_metric_or_a_form_that_there_is_not_is_an_error():
    with pytest.raises(
        RunError, match=r"no evaluation of the run has eval_rewad. Did you mean 'eval_reward'\? Known: eval_kl"
    ):
        metrics.best_generation(ROWS, "best:rewad")
    with pytest.raises(RunError, match="Nothing was evaluated: give a number"):
        metrics.best_generation(ROWS[1:2], "best")
    for wrong in ("worst", "best:", "lowest", "lowest:", "-best"):
        with pytest.raises(ConfigError, match="give a number, best, best:METRIC or lowest:METRIC"):
            metrics.best_generation(ROWS, wrong)


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    mine, theirs = tensors(one), tensors(other)
    return all(np.array_equal(mine[name], theirs[name]) for name in mine)


def test_the_best_generation_is_exported_packed_and_saved_exactly(tmp_path, command):
    root = tmp_path / "run"
    trainer = trained(runs.toy(root, generations=8, alpha=2.0, eval_steps=1, save_steps=3))
    rows = [row for row in runs.rows(directory.RunPaths(root).metrics) if "eval_reward" in row]
    best = max(rows, key=lambda row: (row["eval_reward"], -row["generation"]))["generation"]
    assert best != 8
    seedtune.export_run(root, tmp_path / "expected", generation=best)

    assert seedtune.export_run(root, tmp_path / "exported", generation="best").generation == best
    code, output, _ = command("export", root, "--generation", "best:reward", "-o", tmp_path / "by command")
    assert (code, f"after generation {best}" in output) == (0, True)
    code, output, _ = command("pack", root, "--generation", "best", "-o", tmp_path / "pack")
    assert (code, f"packed {best} generation" in output) == (0, True)
    before = trainer.engine.fingerprint()
    trainer.save_model(tmp_path / "saved", generation="best")
    assert trainer.engine.fingerprint() == before
    trainer.save_model(tmp_path / "last")
    for folder in ("exported", "by command", "saved"):
        assert same(tmp_path / folder, tmp_path / "expected")
    assert not same(tmp_path / "last", tmp_path / "expected")


def test_generations_that_the_run_does_not_have_are_errors(tmp_path, straight, failure):
    assert "generation 6 is not in" in failure("export", straight, "--generation", "6", "-o", tmp_path / "a")
    assert "is out of range" in failure("export", straight, "--generation", "-1", "-o", tmp_path / "a")
    assert "give a number, best" in failure("export", straight, "--generation", "newest", "-o", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    trainer = ESTrainer(args=runs.toy(tmp_path / "new"))
    with pytest.raises(RunError, match="generation 3 is not in"):
        trainer.save_model(tmp_path / "a", generation=3)
