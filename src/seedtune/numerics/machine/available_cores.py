"""The number of threads that fit: the cores that this process may use, not those of the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTS = {"": ("", "unified"), "cpu": ("cpu", "cpu,cpuacct", "cpuacct,cpu")}
"""Folders below /sys/fs/cgroup where a controller's control groups may be mounted; "" is version 2, with only one."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Threads that fit, the cores of the machine, and the limit on the threads ("" if there is none)."""

    threads: int
    cores: int
    limit: str = ""

    @property
    def words(self) -> str | None:
        """Return one line for display if the threads differ from the machine's cores."""
        if self.threads == self.cores:
            return None
        return f"threads: {self.threads} of {self.cores} cores ({self.limit})"


def available(root: Path = Path("/")) -> Fit:
    """Return the cores that the scheduler and control groups leave to this process; quotas are rounded, at least 1."""
    cores = os.cpu_count() or 1
    found = Fit(cores, cores)
    affinity = len(os.sched_getaffinity(0)) if "sched_getaffinity" in dir(os) else cores
    if affinity < found.threads:
        found = Fit(affinity, cores, "affinity")
    quota = min(quotas(root), default=float(cores))
    if (whole := max(1, int(quota + 0.5))) < found.threads:
        found = Fit(whole, cores, "cgroup quota")
    return found


def fitting(root: Path = Path("/")) -> Fit:
    """Return `available`, or the number of threads in ``OMP_NUM_THREADS``."""
    found = available(root)
    chosen = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if not chosen.isdecimal() or int(chosen) < 1:
        return found
    return Fit(int(chosen), found.cores, "OMP_NUM_THREADS")


def quotas(root: Path = Path("/")) -> Iterator[float]:
    """Yield the CPU quota, in cores, of every control group that this process is in."""
    for controller, path in _groups(root / "proc/self/cgroup"):
        for mount in MOUNTS[controller]:
            top = root / "sys/fs/cgroup" / mount
            group = top / path.lstrip("/")
            while group == top or top in group.parents:
                quota = _version_1(group) if controller else _version_2(group)
                if quota is not None:
                    yield quota
                group = group.parent


def _groups(file: Path) -> Iterator[tuple[str, str]]:
    """Yield ("cpu" or "" for version 2, path) of the control groups that may have a quota."""
    for line in _read(file).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            yield "", path
        elif "cpu" in controllers.split(","):
            yield "cpu", path


def _version_2(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")
    return _ratio(quota, period)


def _version_1(group: Path) -> float | None:
    return _ratio(_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    """Return cores, or None for no quota: "max", -1, or missing files."""
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
