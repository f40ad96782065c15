"""A run that is killed, interrupted or robbed of its snapshots goes on to the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import runs
from invariant.kill_instants import size
from invariant.kill_points import POINTS
from seedtune.engines import create, snapshots
from seedtune.errors import ConfigError
from seedtune.run import directory, ledger, recorded_config, replay
from seedtune.trainer import ESTrainer
from waiting import wait_until

KILLS = 20


def straight(root: Path, **settings) -> Path:
    ESTrainer(args=runs.toy(root, **settings)).train()
    return root


def resume(root: Path, **changes) -> None:
    ESTrainer(args=recorded_config.run_config(root).replace(**changes)).train(resume_from_checkpoint=True)


def take_interrupts() -> None:
    """In a new process: take Ctrl-C, which a suite that runs in the background ignores."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        runs.command(*arguments),
        env=runs.environment(),
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Background jobs of a shell ignore interrupts, and so would their children.
        preexec_fn=take_interrupts,
    )


# ------------------------------------------------------------------ any instant


def results_of(script: str, *arguments: str | Path) -> list[dict]:
    """What a script of this folder printed."""
    file = Path(__file__).with_name(script)
    paths = os.pathsep.join([str(runs.SOURCE), str(file.parents[1])])
    done = subprocess.run(
        [sys.executable, file, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=runs.environment(PYTHONPATH=paths),
    )
    assert done.returncode == 0, done.stderr
    return [{**json.loads(line), "errors": done.stderr} for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_killed_at_twenty_instants_a_run_has_the_bytes_of_one_that_never_stopped(tmp_path):
    results = results_of("kill_instants.py", tmp_path, KILLS)
    for result in results:
        assert result["code"] in (0, -signal.SIGKILL), result["errors"]
        assert result["same"]
    assert sum(result["code"] != 0 for result in results) == KILLS
    last = {Path(result["root"]): result["code"] for result in results}
    for root, code in last.items():
        if code != 0:
            finished = runs.cli("resume", root, "--set", "toy.delay=0")
            assert finished.returncode == 0, finished.stderr
        runs.assert_same_run(root, tmp_path / "reference")


# ----------------------------------------------------------------- exact points


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, list[dict]]:
    """The folder of the reference run, and what became of every run that was killed at a point."""
    folder = tmp_path_factory.mktemp("points")
    return folder / "reference", results_of("kill_points.py", folder)


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_an_exact_point_a_run_goes_on_to_the_same_bits(killed, point):
    reference, results = killed
    mine = [result for result in results if result["point"] == point]
    assert len(mine) >= 2
    for result in mine:
        assert result["killed"] == -signal.SIGKILL, result["errors"]
        assert result["resumed"] == 0, result["errors"]
        runs.assert_same_run(Path(result["root"]), reference)


def test_a_generation_whose_metrics_were_lost_is_restored_from_the_ledger(killed):
    _, results = killed
    marked = []
    for result in results:
        metrics = runs.rows(directory.RunPaths(Path(result["root"])).metrics)
        marked += [(result["point"], row["generation"]) for row in metrics if "restored" in row and "reward" in row]
    assert {"after an update", "before metrics and samples"} <= {point for point, _ in marked}
    assert {generation for _, generation in marked} == {1, 2, 3}


# ------------------------------------------------------------------- interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_says_how_to_go_on_and_loses_nothing(tmp_path, number):
    reference, root = straight(tmp_path / "reference", generations=40), tmp_path / "interrupted"
    config = runs.toy(root, generations=40, toy={"size": 4, "delay": 0.1})
    process = start("train", runs.write_config(config, tmp_path / "config.yaml"))
    assert wait_until(lambda: size(root) > 4000, process=process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 130
    (line,) = runs.lines_of(errors)
    assert line.startswith("stopped after generation ")
    assert line.endswith(f"nothing is lost. Continue with: seedtune resume {root}")
    resume(root, toy={"size": 4})
    runs.assert_same_run(root, reference)


DROPPED = """
import os, sys, weakref
from seedtune import cli
from seedtune.trainer import ESTrainer

class Thing:
    pass

emit, number = ESTrainer._emit, int(sys.argv.pop())

def interrupting(self, event, *arguments):
    if event == "on_generation" and arguments[0]["generation"] == 2:
        thing = Thing()
        seen = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
        del thing
        print("dropped", flush=True)
    emit(self, event, *arguments)

ESTrainer._emit = interrupting
cli.main()
"""
"""A run whose interrupt arrives in a callback of a weak reference, where Python drops the exception."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_python_drops_stops_the_run_after_its_generation(tmp_path, number):
    reference, root = straight(tmp_path / "reference", generations=5), tmp_path / "interrupted"
    file = runs.write_config(runs.toy(root, generations=5), tmp_path / "config.yaml")
    command = [sys.executable, "-c", DROPPED, "train", str(file), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=take_interrupts)
    assert done.returncode == 130, done.stderr
    assert "dropped" in done.stdout
    (line,) = runs.lines_of(done.stderr)
    assert line.startswith("stopped after generation 2; nothing is lost.")
    resume(root)
    runs.assert_same_run(root, reference)


# -------------------------------------------------------------------- snapshots


class Stop:
    """Interrupts a run after some generations, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_start(self, *_):
        pass

    on_evaluate = on_end = on_start

    def on_generation(self, metrics):
        if metrics["generation"] == self.after:
            raise KeyboardInterrupt


def stopped(root: Path, after: int, **settings) -> Path:
    with pytest.raises(KeyboardInterrupt):
        ESTrainer(args=runs.toy(root, **settings), callbacks=[Stop(after)]).train()
    return root


def truncate(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def flip(folder: Path) -> None:
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)


def empty(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"")


def lose_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def garble(folder: Path) -> None:
    (folder / "snapshot.json").write_text("{")


def foreign(folder: Path) -> None:
    """A snapshot that is in itself sound, but of another run."""
    engine = create(runs.toy(folder, seed=1))
    engine.load()
    snapshots.save(folder.parent, engine, generations=4, keep=2)


def of_another_model(folder: Path) -> None:
    engine = create(runs.toy(folder, toy={"size": 3}))
    engine.load()
    snapshots.save(folder.parent, engine, generations=4, keep=2)


DAMAGES = (truncate, flip, empty, lose_weights, garble, foreign, of_another_model)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_snapshot_is_passed_over(tmp_path, damage):
    reference, root = straight(tmp_path / "reference"), stopped(tmp_path / "stopped", 5)
    newest, older = snapshots.listing(directory.RunPaths(root).snapshots)
    assert (newest.generations, older.generations) == (4, 2)
    damage(newest.folder)
    config, contents = recorded_config.run_config(root), ledger.read(directory.RunPaths(root).ledger)
    replayed = []
    replay.load(root, config, contents, progress=lambda done, goal: replayed.append((done, goal)))
    assert replayed == [(0, 3), (3, 3)]
    resume(root)
    runs.assert_same_run(root, reference)


def test_without_snapshots_a_run_is_replayed_from_the_base_model(tmp_path):
    reference, root = straight(tmp_path / "reference"), stopped(tmp_path / "stopped", 3)
    shutil.rmtree(directory.RunPaths(root).snapshots)
    resume(root)
    runs.assert_same_run(root, reference)


def test_without_metrics_and_samples_a_run_goes_on_and_metrics_are_restored(tmp_path):
    reference, root = straight(tmp_path / "reference"), stopped(tmp_path / "stopped", 3)
    paths = directory.RunPaths(root)
    paths.metrics.unlink()
    paths.samples.unlink()
    resume(root)
    assert runs.ledger_bytes(root) == runs.ledger_bytes(reference)
    generations = [row["generation"] for row in runs.rows(paths.metrics) if "reward" in row]
    assert generations == [1, 2, 3, 4, 5]


# ------------------------------------------------------------- more generations


def test_a_finished_run_resumed_with_more_generations_is_a_longer_run(tmp_path):
    reference, root = straight(tmp_path / "reference", generations=7), straight(tmp_path / "short")
    resume(root, generations=7)
    long, mine = (ledger.read(directory.RunPaths(path).ledger) for path in (reference, root))
    assert repr(mine.records) == repr(long.records)
    assert mine.header == long.header
    assert mine.fingerprints == {**long.fingerprints, 5: mine.fingerprints[5]}
    assert runs.fingerprint(root) == runs.fingerprint(reference)


def test_a_longer_run_that_is_interrupted_resumes_to_its_new_length(tmp_path):
    root = straight(tmp_path / "run")
    longer = recorded_config.run_config(root).replace(generations=9)
    with pytest.raises(KeyboardInterrupt):
        ESTrainer(args=longer, callbacks=[Stop(7)]).train(resume_from_checkpoint=True)
    resume(root)
    assert ledger.read(directory.RunPaths(root).ledger).generations == 9


def test_a_finished_run_resumed_again_stays_as_it_is(tmp_path):
    reference, root = straight(tmp_path / "reference"), straight(tmp_path / "run")
    resume(root)
    runs.assert_same_run(root, reference)


def test_fewer_generations_than_a_run_has_are_refused(tmp_path):
    root = straight(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"generations=4, but .* has 5 already"):
        resume(root, generations=4)


def test_a_ledger_cut_back_by_the_user_goes_on_from_there(tmp_path):
    reference, root = straight(tmp_path / "reference"), straight(tmp_path / "run")
    lines = runs.ledger_bytes(root).splitlines(keepends=True)
    directory.RunPaths(root).ledger.write_bytes(b"".join(lines[:3]))
    resume(root)
    runs.assert_same_run(root, reference)
