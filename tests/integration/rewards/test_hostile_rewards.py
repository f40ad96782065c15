"""Whole runs whose rewards misbehave: the run finishes or stops with a way on, and its ledger verifies."""

from __future__ import annotations

import sys

import pytest

import hostile
import runs
from seedtune import verify_run
from seedtune.errors import RewardError
from seedtune.rewards.execution import process
from seedtune.run import directory
from seedtune.trainer import ESTrainer

DATA = [{"prompt": f"word {index}"} for index in range(6)]
NAMES = [f"sometimes_{name}" for name in (*hostile.SOMETIMES, "prints_much", "nan", "none")]
SMALL = {"generations": 1, "population": 2, "reward_timeout": 2.0, "reward_memory_mb": 100}
FAILING = [f"sometimes_{name}" for name in hostile.SOMETIMES]


class NotPicklable:
    """A judge that holds what no other process can have."""

    def __init__(self) -> None:
        self.held = (line for line in "abc")

    def __call__(self, prompts, completions):
        if "word 0" in prompts:
            next(iter(()))
        return hostile.digits(completions)


@pytest.fixture(autouse=True)
def _little_grace(monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.1)


def trainer(root, functions, **settings) -> ESTrainer:
    small = {"generations": 2, "prompts_per_generation": 6, "eval_steps": 0, "reward_workers": 3}
    config = runs.toy(root, **{**small, **settings})
    return ESTrainer(args=config, reward_funcs=functions, train_dataset=DATA)


def metrics(root) -> list[dict]:
    return [row for row in runs.rows(directory.RunPaths(root).metrics) if "reward" in row]


def test_a_run_outlives_every_reward_that_fails_on_some_completions(tmp_path, caplog, capfd):
    functions = [*(getattr(hostile, name) for name in NAMES), NotPicklable()]
    trainer(tmp_path / "run", functions, **SMALL).train()
    assert verify_run(tmp_path / "run").generations == 1
    (row,) = metrics(tmp_path / "run")
    failing = [*FAILING, "NotPicklable"]
    expected = {name: 3 if name in failing else 0 for name in [*NAMES, "NotPicklable"]}
    assert {name: row[f"rewards/{name}/failed"] for name in expected} == expected
    assert row["frac_reward_missing"] == 1 / 6  # although sometimes_prints_much has a value everywhere
    assert len([alarm for alarm in row["alarms"] if "failed on 3 of 18 completions" in alarm]) == len(failing)
    failures = runs.rows(directory.RunPaths(tmp_path / "run").failures)
    assert {(row["after_generation"], row["reward"]) for row in failures} == {(0, name) for name in failing}
    assert all(row["prompt_id"] == 0 for row in failures)
    assert len([record for record in caplog.records if "shown once" in record.getMessage()]) == len(failing)
    assert "xxx" not in capfd.readouterr().out


def test_the_ledger_does_not_depend_on_how_rewards_are_run(tmp_path):
    settings = {"processes": {}, "one": {"reward_workers": 1}, "threads": {"reward_workers": 0}}
    for name, more in settings.items():
        trainer(tmp_path / name, [hostile.sometimes_raises, hostile.length], **more).train()
    ledgers = {runs.ledger_bytes(tmp_path / name) for name in settings}
    assert len(ledgers) == 1


def test_a_reward_that_starts_to_fail_stops_the_run_which_then_goes_on_as_if_it_had_not(tmp_path):
    def digits(completions, **_):
        metrics = directory.RunPaths(tmp_path / "run").metrics
        if metrics.exists() and '"reward"' in metrics.read_text(encoding="utf-8"):
            raise OSError("the judge is gone")
        return hostile.digits(completions)

    with pytest.raises(RewardError) as caught:
        trainer(tmp_path / "run", digits).train()
    assert "'digits' failed on 16 of 30 completions, more than max_reward_failure_rate=0.5 allows" in str(caught.value)
    assert str(caught.value).endswith("Nothing is lost: go on with ESTrainer(...).train(resume_from_checkpoint=True).")
    failures = runs.rows(directory.RunPaths(tmp_path / "run").failures)
    assert {row["error"] for row in failures} == {"raised OSError: the judge is gone"}
    for root in ("run", "straight"):
        trainer(tmp_path / root, hostile.digits).train(resume_from_checkpoint=root == "run")
    runs.assert_same_run(tmp_path / "run", tmp_path / "straight")
    assert verify_run(tmp_path / "run").generations == 2


def test_a_stopped_built_in_task_names_the_command_that_goes_on(tmp_path, monkeypatch):
    one = ESTrainer(args=runs.toy(tmp_path / "a run"))
    monkeypatch.setattr(
        sys.modules["seedtune.tasks.builtin.toy"], "_closeness", lambda text, target: hostile.raises([])
    )
    with pytest.raises(
        RewardError, match=r"'closeness' raised KeyError: 'answer', like every other .* resume '.*a run'"
    ):
        one.train()
