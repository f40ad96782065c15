"""Ray engines on a Ray that is not theirs, a Ray that dies, workers of several kinds; drivers are processes."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import runs
from ray_workers import alone, ray_config
from seedtune.engines.ray.status_file import STATUS, status_of
from seedtune.errors import ConfigError, MissingExtraError, RunError
from seedtune.run import directory, ledger
from seedtune.run.artifacts.verify import verify_run
from seedtune.trainer import ESTrainer
from waiting import BOUND, alive, wait_until

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs Ray", allow_module_level=True)

SLOW = {"size": 6, "delay": 0.15}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[str]:
    """The address of a Ray cluster started outside of seedtune."""
    folder = tmp_path_factory.mktemp("ray")
    port, ray = free_port(), Path(sys.executable).with_name("ray")
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    command = [
        ray,
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=4",
        "--num-gpus=4",
        "--include-dashboard=false",
        "--block",
    ]
    with (folder / "ray.log").open("w") as log:
        head = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    begun = wait_until(lambda: "Ray runtime started" in (folder / "ray.log").read_text(), process=head)
    assert begun, (folder / "ray.log").read_text()
    yield f"{_address(folder)}:{port}"
    children = psutil.Process(head.pid).children(recursive=True)
    head.terminate()
    head.wait()
    for child in children:
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _address(folder: Path) -> str:
    """Where Ray says that it is."""
    for line in (folder / "ray.log").read_text().splitlines():
        if "Local node IP" in line:
            return line.rpartition(":")[2].strip()
    return "127.0.0.1"


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    env = runs.environment(RAY_AUTH_MODE="disabled")
    return subprocess.Popen(
        runs.command(*arguments), env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def generations(root: Path) -> int:
    path = directory.RunPaths(root).metrics
    return sum("reward" in row for row in runs.rows(path)) if path.exists() else 0


def shown_workers(root: Path, process: subprocess.Popen[str], *, done: int, workers: int) -> list[dict]:
    """The workers of a status that shows so many with a process, once so many generations are done."""
    seen: list[dict] = []

    def shown() -> bool:
        with suppress(RunError):
            seen[:] = status_of(root)["workers"]
        return generations(root) >= done and sum(one["pid"] is not None for one in seen) >= workers

    assert wait_until(shown, process=process), process.communicate()
    return seen


def straight(root: Path, **settings) -> Path:
    ESTrainer(args=alone(ray_config(root, **settings), root)).train()
    return root


# ------------------------------------------------------------------------------------------------- clusters


@pytest.mark.slow
def test_workers_outlive_their_driver_and_are_taken_over_by_a_resumed_run(tmp_path, cluster):
    root, whole = tmp_path / "run", straight(tmp_path / "reference", generations=12)
    slow = {"size": 6, "delay": 0.3}
    config = ray_config(root, generations=12, toy=slow, ray={"address": cluster, "detached": True})
    driver = start("train", runs.write_config(config, tmp_path / "config.yaml"))
    workers = {one["pid"] for one in shown_workers(root, driver, done=3, workers=2)}
    driver.kill()
    driver.communicate()
    (root / STATUS).unlink()
    time.sleep(3.0)  # in which Ray ends what is not to outlive its driver
    assert all(map(alive, workers)), "they are still there"
    resumed = start("resume", root)
    taken = {one["pid"] for one in shown_workers(root, resumed, done=6, workers=2)}
    out, errors = resumed.communicate(timeout=BOUND)
    assert resumed.returncode == 0, errors + out
    assert taken == workers
    runs.assert_same_run(root, whole)
    wait_until(lambda: not any(map(alive, workers)))


@pytest.mark.slow
def test_workers_with_several_gpus_have_groups_of_them_and_give_them_back(tmp_path, cluster):
    """Ray takes our word for the GPUs: a third worker waits for two that are free, and the run does not wait for it."""
    whole = straight(tmp_path / "reference")
    for root in (tmp_path / "first", tmp_path / "second"):
        config = ray_config(
            root, toy=SLOW, ray={"address": cluster, "resources": {"GPU": 2}, "workers": 3, "min_workers": 2}
        )
        driver = start("train", runs.write_config(config, tmp_path / f"{root.name}.yaml"))
        states = [one["state"] for one in shown_workers(root, driver, done=3, workers=2)]
        out, errors = driver.communicate(timeout=BOUND)
        assert driver.returncode == 0, errors + out
        assert states.count("starting") == 1
        runs.assert_same_run(root, whole)


def test_a_cluster_that_is_not_there_is_an_error_at_once(tmp_path):
    config = ray_config(tmp_path / "run", ray={"address": f"127.0.0.1:{free_port()}"})
    refused = rf"ray.address='127.0.0.1:\d+' cannot be reached .*{errno.ECONNREFUSED}.*refused"  # not by Ray, later
    with pytest.raises(ConfigError, match=refused):
        ESTrainer(args=config).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_sigterm_to_the_driver_is_an_interrupt(tmp_path):
    root = tmp_path / "run"
    config = ray_config(root, generations=40, toy={"size": 6, "delay": 0.3})
    driver = start("train", runs.write_config(config, tmp_path / "config.yaml"))
    workers = {one["pid"] for one in shown_workers(root, driver, done=1, workers=2)}
    driver.terminate()
    _, errors = driver.communicate()
    assert driver.returncode == 130
    last = runs.lines_of(errors)
    assert len(last) == 1, errors
    assert last[0].startswith("stopped after generation "), errors
    assert wait_until(lambda: not any(map(alive, workers)))


@pytest.mark.slow
def test_a_ray_that_dies_under_a_run_is_started_again(tmp_path):
    root, whole = tmp_path / "run", straight(tmp_path / "reference", generations=30)
    driver = start("train", runs.write_config(ray_config(root, generations=30, toy=SLOW), tmp_path / "config.yaml"))
    assert wait_until(lambda: generations(root) >= 3, process=driver)
    (raylet,) = [p for p in psutil.Process(driver.pid).children(recursive=True) if p.name() == "raylet"]
    os.kill(raylet.pid, signal.SIGKILL)
    out, errors = driver.communicate(timeout=BOUND)
    if driver.returncode != 0:  # Ray took its driver with it: the run goes on all the same
        resumed = start("resume", root)
        out, errors = resumed.communicate(timeout=BOUND)
        assert resumed.returncode == 0, errors + out
    runs.assert_same_run(root, whole)


# ---------------------------------------------------------------------------------------------- several kinds


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
def test_a_worker_of_vllm_and_one_of_transformers_hold_the_same_weights(tmp_path):
    from serving import SMALL, save_served

    root = tmp_path / "run"
    config = ray_config(
        root,
        model=str(save_served("qwen2", tmp_path / "model")),
        task="conciseness",
        generations=5,
        max_completion_length=6,
        max_prompt_length=50,
        prompt_truncation="left",
        eval_prompts=2,
        members_per_job=2,
        fingerprint_steps=1,
        dtype="float32",
        transformers={"device": "cpu"},
        vllm=SMALL,
        ray={
            "engine": "transformers",
            "workers": {"vllm": 1, "transformers": 1},
            "min_workers": 2,
            "resources": {"CPU": 1},
        },
    )
    file = runs.write_config(config, tmp_path / "config.yaml")
    driver = start("train", file)
    out, errors = driver.communicate(timeout=BOUND)
    assert driver.returncode == 0, errors + out
    rows = [row for row in runs.rows(directory.RunPaths(root).metrics) if "ray/workers" in row]
    assert [row["ray/workers"] for row in rows] == [2.0] * 5
    assert sum(row["ray/lost"] for row in rows) == 0, "no worker held other weights at any of five comparisons"
    contents = ledger.read(directory.RunPaths(root).ledger)
    assert contents.header.config["engine"] == "transformers+vllm"
    assert sorted(contents.fingerprints) == [1, 2, 3, 4, 5]
    assert verify_run(root).matched == (1, 2, 3, 4, 5)


# ---------------------------------------------------------------------------------------------- installation


def test_without_ray_the_line_to_install_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    with pytest.raises(MissingExtraError, match=r"engine=ray .* Install it with: pip install 'ray>=2.50'"):
        ESTrainer(args=ray_config(tmp_path / "run")).train()
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
