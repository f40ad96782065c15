"""What the Ray engine does when workers answer in any order, fail, lie or fall behind; workers are of this process."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

import runs
from ray_workers import At, alone, count_readings, inline, maker, ray_config
from seedtune.engines import create
from seedtune.engines.codec import decode, encode
from seedtune.engines.ray import controller, worker_spec
from seedtune.engines.ray.protocol import Call, JobMessage, Reply
from seedtune.engines.ray.scheduler import Request
from seedtune.errors import ConfigError, DataError, EngineError
from seedtune.run import directory, ledger
from seedtune.run.artifacts.verify import verify_run
from seedtune.trainer import ESTrainer
from seedtune.types import UNPERTURBED, Job, Member, Prompt, Sampling, Term, Update


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("alone") / "run"
    ESTrainer(args=alone(ray_config(root), root)).train()
    return root


def metrics(root: Path) -> list[dict]:
    return runs.rows(directory.RunPaths(root).metrics)


def counted(root: Path, name: str) -> float:
    return sum(row.get(f"ray/{name}", 0) for row in metrics(root))


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("workers", [1, 3, 7])
def test_replies_in_any_order_give_the_ledger_of_one_process(tmp_path, reference, seed, workers):
    with inline(seed=seed):
        ESTrainer(args=ray_config(tmp_path / "run", ray={"workers": workers})).train()
    runs.assert_same_run(tmp_path / "run", reference)


def every(number: int, what) -> object:
    """Something else instead of every so many-th answer to a job."""

    def fault(worker, request, calls):
        operation = decode(request, Call).operation
        return what(worker, request) if operation == "evaluate" and calls % number == 0 else None

    return fault


GARBAGE = {
    "a crash": lambda worker, request: RuntimeError("the actor died"),
    "no bytes of ours": lambda worker, request: b"\xc1garbage",
    "another message": lambda worker, request: encode({"hello": 1}),
    "no rollouts": lambda worker, request: encode(
        Reply(["x"], "", "", worker.epoch, worker.position, synced=0.0, worked=0.0)
    ),
    "out of memory": lambda worker, request: encode(
        Reply(None, "OutOfMemoryError", "CUDA out of memory", worker.epoch, worker.position, synced=0.0, worked=0.0)
    ),
}


@pytest.mark.parametrize("what", GARBAGE.values(), ids=GARBAGE)
def test_a_worker_that_fails_is_replaced_and_its_work_done_again(tmp_path, reference, what):
    with inline(fault=every(11, what)):
        ESTrainer(args=ray_config(tmp_path / "run", ray={"workers": 3})).train()
    runs.assert_same_run(tmp_path / "run", reference)
    assert counted(tmp_path / "run", "lost") > 0
    assert counted(tmp_path / "run", "given_up") == 0
    assert any("is lost" in alarm for row in metrics(tmp_path / "run") for alarm in row.get("alarms", ()))


def test_a_job_that_kills_every_worker_costs_its_members_their_reward_and_nothing_else(tmp_path):
    def fault(worker, request, calls):
        call = decode(request, Call)
        poisonous = call.operation == "evaluate" and (2, 1, 1) in decode(call.arguments["job"], JobMessage).members
        return RuntimeError("poison") if poisonous else None

    root = tmp_path / "run"
    with inline(fault=fault):
        ESTrainer(args=ray_config(root, ray={"workers": 2, "retries": 1})).train()
    records = ledger.read(directory.RunPaths(root).ledger).records
    missing = [[m for m, r in zip(rec.plan.members, rec.rewards, strict=True) if r != r] for rec in records]
    assert [len(members) for members in missing] == [0, 0, 4, 0, 0, 0, 0, 0]
    assert Member(2, 1, 1) in missing[2]
    assert counted(root, "given_up") == 1
    assert any("given up" in alarm for row in metrics(root) for alarm in row.get("alarms", ()))
    assert verify_run(root).generations == 8


def test_a_run_on_which_every_job_fails_stops_and_says_why(tmp_path):
    with inline(fault=every(1, lambda worker, request: RuntimeError("no such kernel"))):
        trainer = ESTrainer(args=ray_config(tmp_path / "run", ray={"retries": 1}))
        with pytest.raises(EngineError, match=r"every job failed 2 times; the last time: .*no such kernel"):
            trainer.train()


def test_what_the_user_has_to_mend_is_raised_as_in_one_process(tmp_path):
    config = ray_config(tmp_path / "run")
    with inline():
        engine = create(config)
        engine.load()
    nothing = Job(0, 0.1, (UNPERTURBED,), (Prompt(3, "x", answers=("",)),), Sampling(4))
    with pytest.raises(DataError, match="prompt 3 has the answers"):
        list(engine.likelihoods([nothing]))
    assert len(list(engine.evaluate([Job(0, 0.1, (UNPERTURBED,), (Prompt(3, "x"),), Sampling(4))]))) == 1, "it goes on"


# ------------------------------------------------------------------------------------------------ weights


def drifting():
    """A worker whose memory is not to be trusted: once, its weights move by themselves."""
    moved = []

    def fault(worker, request, calls):
        if worker.name == "toy-1" and calls >= 40 and not moved:
            moved.append(worker.actor.engine.apply(Update(99, (Term(99, 0, 0.5),))))

    return fault


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_whose_weights_differ_is_named_and_rebuilt(tmp_path, workers):
    root = tmp_path / "run"
    with inline(fault=drifting()):
        ESTrainer(args=ray_config(root, ray={"workers": workers})).train()
    alarms = [alarm for row in metrics(root) for alarm in row.get("alarms", ()) if "fingerprint" in alarm]
    assert any("worker toy-1" in alarm for alarm in alarms)
    assert verify_run(root).fingerprint == ledger.read(directory.RunPaths(root).ledger).fingerprints[8]


def test_fewer_workers_are_no_reason_to_wait_for_one_that_is_gone(tmp_path, reference):
    """The worker that is to write a snapshot is let go before it does."""
    asked = []

    def shrink(worker, request, calls):
        if decode(request, Call).operation == "fingerprint" and len(asked) < 4:
            asked.append(worker.name)
            trainer.engine.scale(1)

    with inline(fault=shrink):
        trainer = ESTrainer(args=ray_config(tmp_path / "run", ray={"workers": 4}))
        trainer.train()
    assert len(trainer.engine.controller.pool.workers) == 1
    runs.assert_same_run(tmp_path / "run", reference)


def test_a_pause_of_the_driver_costs_no_worker(tmp_path, reference, monkeypatch):
    """Replies that lie ready are taken before anybody is judged."""
    clock, ahead = time.monotonic, [0.0]
    monkeypatch.setattr(controller.time, "monotonic", lambda: clock() + ahead[0])

    def pause():
        ahead[0] += 10_000.0

    with inline():
        callbacks = [At(generation, pause) for generation in (2, 3, 5)]
        ESTrainer(args=ray_config(tmp_path / "run", ray={"workers": 3}), callbacks=callbacks).train()
    runs.assert_same_run(tmp_path / "run", reference)
    assert counted(tmp_path / "run", "lost") == 0


def test_a_worker_at_a_job_is_not_lost_for_a_fingerprint(tmp_path, monkeypatch):
    count_readings(monkeypatch)
    root = tmp_path / "run"
    settings = {"alpha": 0.1, "generations": 12, "population": 32, "members_per_job": 2, "fingerprint_steps": 1}
    with inline(seed=4):
        ESTrainer(
            args=ray_config(root, **settings, ray={"workers": 4, "max_staleness": 2, "straggler_timeout": 0.001})
        ).train()
    assert counted(root, "lost") == 0
    assert verify_run(root).matched == tuple(range(1, 13))


def test_a_worker_that_hangs_idle_is_given_up_though_the_others_were_busy(monkeypatch):
    """Asked for its fingerprint alone, it would be waited for as long as a worker may take to start."""
    engine = maker(ray={"workers": 2, "straggler_timeout": 0.05, "start_timeout": 80_000.0})()
    engine.load()
    controller = engine.controller
    while len(controller.here()) < 2:
        controller.turn()
    hanging, busy = controller.here()
    controller.pool.silent = {hanging.name, busy.name}
    controller.submit(Request(only=busy.name, operation="fingerprint"))
    while busy.call is None:
        controller.turn()
    threading.Timer(0.2, controller.pool.silent.remove, [busy.name]).start()
    assert len(engine.fingerprint()) > 0
    assert hanging not in controller.here()
    assert busy in controller.here()


def test_a_file_that_workers_would_share_is_refused():
    config = ray_config(Path("nowhere"), ray={"engine": "transformers"}, transformers={"weights_folder": "weights"})
    with pytest.raises(ConfigError, match=r"transformers.weights_folder='.*/weights' is the file of one process"):
        worker_spec.check(config, 0.0)


@pytest.mark.parametrize("requested", [{"vllm": 3}, {"toy": 2, "vllm": 1}])
def test_workers_of_a_kind_that_there_is_not_cannot_be_asked_for(tmp_path, requested):
    with inline():
        engine = create(ray_config(tmp_path))
        with pytest.raises(ConfigError, match="there are workers of toy"):
            engine.scale(requested)
        with pytest.raises(ConfigError, match="for workers that run"):
            engine.scale(3)


def test_a_worker_that_comes_late_begins_from_the_newest_snapshot(tmp_path):
    loads: list[tuple] = []

    def watching(worker, request, calls):
        call = decode(request, Call)
        if call.operation == "enrol":
            loads.append((call.sync.start.snapshot, call.sync.position, len(call.sync.updates)))

    config = ray_config(tmp_path / "run")

    with inline(fault=watching):
        trainer = ESTrainer(args=config, callbacks=[At(5, lambda: trainer.engine.scale(3))])
        trainer.train()
    assert loads[:2] == [(None, 0, 0)] * 2
    assert loads[2] == (str(tmp_path / "run" / "snapshots" / "000003"), 3, 2)


def test_a_snapshot_that_a_worker_cannot_use_sends_it_to_the_base_model(tmp_path, reference):
    def grow():
        weights = tmp_path / "run" / "snapshots" / "000003" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-3])
        trainer.engine.scale(4)

    with inline():
        trainer = ESTrainer(args=ray_config(tmp_path / "run"), callbacks=[At(4, grow)])
        trainer.train()
    assert len(trainer.engine.controller.here()) == 4
    runs.assert_same_run(tmp_path / "run", reference)
