"""Threads fit what the scheduler and control groups leave, wherever groups are mounted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from seedtune.numerics.machine import available_cores

CORES = os.cpu_count() or 1


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with /proc/self/cgroup and files below /sys/fs/cgroup."""
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    return root


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_without_control_groups_every_core_fits_and_nothing_is_said(tmp_path):
    assert available_cores.fitting(tmp_path) == available_cores.Fit(8, 8)
    assert available_cores.fitting(tmp_path).words is None


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("200000 100000", 2), ("150000 100000", 2), ("140000 100000", 1), ("10000 100000", 1), ("max 100000", 8)],
)
def test_a_quota_of_version_2_is_rounded_and_at_least_one(tmp_path, quota, threads):
    root = system(tmp_path, "0::/\n", {"cpu.max": quota + "\n"})
    assert available_cores.fitting(root).threads == threads


def test_the_smallest_quota_on_the_way_up_counts(tmp_path):
    quotas = {"a/b/c/cpu.max": "max 100000", "a/b/cpu.max": "600000 100000", "a/cpu.max": "300000 100000"}
    root = system(tmp_path, "0::/a/b/c\n", quotas)
    assert sorted(available_cores.quotas(root)) == [3.0, 6.0]
    assert available_cores.fitting(root).words == "threads: 3 of 8 cores (cgroup quota)"


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1_is_found_where_it_is_mounted(tmp_path, mount):
    files = {f"{mount}/job/cpu.cfs_quota_us": "400000\n", f"{mount}/job/cpu.cfs_period_us": "100000\n"}
    root = system(tmp_path, "9:memory:/other\n4:cpu,cpuacct:/job\n0::/\n", files)
    assert available_cores.fitting(root) == available_cores.Fit(4, 8, "cgroup quota")


def test_a_path_of_the_host_that_a_container_does_not_see_leaves_the_mounts_own_quota(tmp_path):
    files = {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}
    assert available_cores.fitting(system(tmp_path, "1:cpu:/docker/abc\n", files)).threads == 1


@pytest.mark.parametrize("quota", ["-1", "", "much"])
def test_what_is_no_quota_limits_nothing(tmp_path, quota):
    files = {"cpu/cpu.cfs_quota_us": quota, "cpu/cpu.cfs_period_us": "100000"}
    assert available_cores.fitting(system(tmp_path, "1:cpu:/\n", files)) == available_cores.Fit(8, 8)


def test_the_smaller_of_affinity_and_quota_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5, 6})
    assert available_cores.fitting(tmp_path).words == "threads: 3 of 8 cores (affinity)"
    root = system(tmp_path, "0::/\n", {"cpu.max": "200000 100000"})
    assert available_cores.fitting(root).words == "threads: 2 of 8 cores (cgroup quota)"


@pytest.mark.parametrize(("chosen", "threads"), [("5", 5), ("6,2", 6), ("", 2), ("0", 2), ("many", 2)])
def test_what_a_user_sets_stands(tmp_path, monkeypatch, chosen, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    root = system(tmp_path, "0::/\n", {"cpu.max": "200000 100000"})
    assert available_cores.fitting(root).threads == threads
    assert available_cores.available(root).threads == 2


ENGINE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import torch, numba
from seedtune import engines
from seedtune.config.config import Config
torch.set_num_threads(3)
engines.create(Config(engine="toy", task="toy", model="toy"))
print(torch.get_num_threads(), numba.get_num_threads())
"""


def test_an_engine_on_one_core_computes_on_one_thread():
    env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", ENGINE], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1", "1"], done.stderr


@pytest.mark.skipif(CORES < 2, reason="one core is all there is")
def test_ray_workers_share_the_cores_that_fit(monkeypatch):
    from seedtune.config.config import Config
    from seedtune.engines.ray import worker_spec

    config = Config(engine="ray", task="toy", model="toy", ray={"engine": "toy", "workers": 2})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(available_cores, "quotas", lambda _root: iter(()))
    assert worker_spec.cores_of(config) == 3.0


@pytest.mark.parametrize(("ranks", "threads"), [(1, None), (2, "3"), (8, "1")])
def test_ranks_of_vllm_on_the_cpu_share_the_threads_that_fit(monkeypatch, ranks, threads):
    from seedtune.engines.vllm import compat

    monkeypatch.setattr(compat, "on_cpu", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(available_cores, "quotas", lambda _root: iter(()))
    with compat.threads_of_ranks(ranks):
        assert os.environ.get("OMP_NUM_THREADS") == threads
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with compat.threads_of_ranks(ranks):
        assert os.environ["OMP_NUM_THREADS"] == "5"
