"""A run of Ray workers is the run of one process, whatever happens: real Ray, real processes, real signals."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import runs
from models import save_family
from ray_workers import At, Attacker, alone, ray_config, ray_here, turn_until
from seedtune.engines.ray import controller, worker_pool
from seedtune.engines.ray.status_file import ask, status_of
from seedtune.run import directory, recorded_config
from seedtune.trainer import ESTrainer
from waiting import alive, wait_until

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray", allow_module_level=True)  # not imported here: its settings come first

SLOW = {"size": 6, "delay": 0.15}


@pytest.fixture(scope="module", autouse=True)
def _ray():
    with ray_here():
        yield


def straight(root: Path, **settings) -> Path:
    """The run that another must be, in this process."""
    ESTrainer(args=alone(ray_config(root, **settings), root)).train()
    return root


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    return straight(tmp_path_factory.mktemp("alone") / "run")


def trained(config, **inputs) -> ESTrainer:
    trainer = ESTrainer(args=config, **inputs)
    try:
        trainer.train()
    finally:
        trainer.load().close()
    return trainer


def counted(root: Path, name: str) -> float:
    return sum(row.get(f"ray/{name}", 0) for row in runs.rows(directory.RunPaths(root).metrics))


# ---------------------------------------------------------------------------------------- any number of workers


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_writes_the_ledger_of_one_process(tmp_path, reference, workers):
    trained(ray_config(tmp_path / "run", ray={"workers": workers}))
    runs.assert_same_run(tmp_path / "run", reference)


def test_workers_with_a_tiny_transformer_write_the_ledger_of_one_process(tmp_path):
    settings = {
        "model": str(save_family("llama", tmp_path / "model")),
        "task": "conciseness",
        "generations": 3,
        "max_completion_length": 6,
        "max_prompt_length": 50,
        "prompt_truncation": "left",
        "eval_prompts": 2,
        "transformers": {"device": "cpu"},
    }
    config = ray_config(
        tmp_path / "run", **settings, ray={"engine": "transformers", "workers": 2, "resources": {"CPU": 1}}
    )
    ESTrainer(args=alone(config, tmp_path / "alone")).train()
    trained(config)
    runs.assert_same_run(tmp_path / "run", tmp_path / "alone")


def test_a_worker_that_joins_at_generation_three_changes_nothing(tmp_path, reference):
    """It starts while the run goes on; before the last two generations the run waits until it is there."""

    def there():
        turn_until(trainer.engine, lambda: len(trainer.engine.controller.here()) == 3)

    callbacks = [At(3, lambda: trainer.engine.scale(3)), At(6, there)]
    trainer = ESTrainer(args=ray_config(tmp_path / "run", toy=SLOW), callbacks=callbacks)
    trainer.train()
    trainer.engine.close()
    assert "toy-2" in {span.worker for span in trainer.engine.spans}
    runs.assert_same_run(tmp_path / "run", reference)


def test_running_workers_are_shown_and_resized_from_outside(tmp_path, reference):
    root, commands = tmp_path / "run", []

    def look():
        turn_until(trainer.engine, lambda: any(one["jobs"] for one in status_of(root)["workers"]))
        commands.append(runs.cli("ray", "status", root))
        commands.append(runs.cli("ray", "scale", root, "1"))

    def smaller():
        turn_until(trainer.engine, lambda: len(trainer.engine.controller.pool.workers) == 1)

    trainer = ESTrainer(args=ray_config(root, toy=SLOW), callbacks=[At(2, look), At(6, smaller)])
    trainer.train()
    trainer.engine.close()
    assert [done.returncode for done in commands] == [0, 0], commands
    assert "toy-0" in commands[0].stdout
    runs.assert_same_run(root, reference)
    assert "no Ray workers are at" in runs.only_line(*_ended(runs.cli("ray", "status", root)))


def _ended(done: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    return done.returncode, done.stderr


def test_too_few_workers_are_asked_for_in_vain(tmp_path):
    root = tmp_path / "run"
    settings = {"workers": 2, "min_workers": 2}

    def answered():
        turn_until(
            trainer.engine, lambda: any("nothing changes" in note for note in trainer.engine.controller.pool.notes)
        )

    trainer = ESTrainer(
        args=ray_config(root, toy=SLOW, ray=settings), callbacks=[At(2, lambda: ask(root, {"toy": 1})), At(6, answered)]
    )
    trainer.train()
    assert len(trainer.engine.controller.pool.workers) == 2
    trainer.engine.close()


# -------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
def test_workers_killed_at_twenty_instants_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(worker_pool, "SHORT", 0.1)  # seconds before a lost worker is replaced
    settings = {"generations": 120, "fingerprint_steps": 7, "save_steps": 10}
    whole = straight(tmp_path / "reference", **settings)
    config = ray_config(tmp_path / "run", **settings, ray={"workers": 3, "retries": 20}, toy=SLOW)
    patience = 20 * 120.0  # each kill takes a new worker, seconds of a core that others may share
    waits = At(110, lambda: turn_until(trainer.engine, lambda: len(attacker.done) == 20, seconds=patience))
    trainer = ESTrainer(args=config, callbacks=[waits])
    attacker = Attacker(lambda: trainer.engine, lambda pid: os.kill(pid, signal.SIGKILL), times=20, seed=1)
    attacker.start()
    trainer.train()
    attacker.over.set()
    trainer.engine.close()
    assert len(attacker.done) == 20
    runs.assert_same_run(tmp_path / "run", whole)
    assert counted(tmp_path / "run", "lost") >= 15
    assert counted(tmp_path / "run", "given_up") == 0


def test_workers_have_the_priority_of_their_driver(tmp_path):
    found = []

    def look():
        here = trainer.engine.controller.here
        turn_until(trainer.engine, lambda: len(here()) == 2)
        pids = [0, *(worker.pid for worker in here())]
        found.extend(os.getpriority(os.PRIO_PROCESS, pid) for pid in pids)

    trainer = ESTrainer(args=ray_config(tmp_path / "run", generations=2), callbacks=[At(1, look)])
    trainer.train()
    trainer.engine.close()
    assert len(found) == 3
    assert len(set(found)) == 1, "Ray's own default would be 15 less"


def test_a_worker_that_dies_while_it_is_idle_is_replaced_before_anything_is_asked_of_it(
    tmp_path, reference, monkeypatch
):
    monkeypatch.setattr(worker_pool, "SHORT", 0.1)
    monkeypatch.setattr(controller, "SILENCE_SECONDS", 0.2)

    def kill():
        idle = trainer.engine.controller.here()[0]
        os.kill(idle.pid, signal.SIGKILL)
        here = trainer.engine.controller.here
        turn_until(trainer.engine, lambda: idle not in here() and len(here()) == 2)

    trainer = ESTrainer(args=ray_config(tmp_path / "run", toy=SLOW), callbacks=[At(4, kill)])
    trainer.train()
    trainer.engine.close()
    runs.assert_same_run(tmp_path / "run", reference)


def test_losing_one_of_two_workers_costs_its_job_once_more_and_no_generation(tmp_path, reference):
    def kill():
        os.kill(trainer.engine.controller.here()[0].pid, signal.SIGKILL)

    trainer = ESTrainer(args=ray_config(tmp_path / "run", toy=SLOW), callbacks=[At(4, kill)])
    trainer.train()
    jobs = [span for span in trainer.engine.spans if span.kind == "evaluate"]
    trainer.engine.close()
    runs.assert_same_run(tmp_path / "run", reference)
    assert len({span.number for span in jobs}) == len(jobs), "no finished job was done twice"
    assert counted(tmp_path / "run", "lost") == 1
    assert counted(tmp_path / "run", "retried") <= 1
    rows = runs.rows(directory.RunPaths(tmp_path / "run").metrics)
    assert any("is lost" in alarm for row in rows for alarm in row.get("alarms", ()))


def test_a_worker_that_is_stopped_is_given_up_and_the_run_goes_on(tmp_path, reference):
    stopped = []

    def stop():
        stopped.append(trainer.engine.controller.here()[0].pid)
        os.kill(stopped[0], signal.SIGSTOP)

    settings = {"workers": 2, "straggler_timeout": 2.0}
    trainer = ESTrainer(args=ray_config(tmp_path / "run", toy=SLOW, ray=settings), callbacks=[At(3, stop)])
    trainer.train()
    trainer.engine.close()
    runs.assert_same_run(tmp_path / "run", reference)
    wait_until(lambda: not alive(stopped[0]))


def test_a_run_whose_process_is_killed_leaves_no_worker_behind_and_goes_on(tmp_path, reference):
    """With Ray of its own, which ends with it; resumed by Ray workers, and a copy by one process."""
    config = ray_config(tmp_path / "run", toy={"size": 6, "delay": 0.5})
    file = runs.write_config(config, tmp_path / "config.yaml")
    driver = subprocess.Popen(runs.command("train", file), env=runs.environment(), stderr=subprocess.PIPE, text=True)
    paths = directory.RunPaths(tmp_path / "run")
    assert wait_until(lambda: paths.metrics.exists() and len(runs.rows(paths.metrics)) > 3, process=driver)
    workers = [one["pid"] for one in status_of(paths.root)["workers"] if one["pid"]]
    driver.kill()
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL
    assert workers
    wait_until(lambda: not any(map(alive, workers)))
    copy = shutil.copytree(paths.root, tmp_path / "copy")
    for root, engine in ((paths.root, "ray"), (copy, "toy")):
        resumed = ESTrainer(args=recorded_config.run_config(root).replace(engine=engine, toy={"size": 6}))
        resumed.train(resume_from_checkpoint=True)
        resumed.engine.close()
        runs.assert_same_run(root, reference)
