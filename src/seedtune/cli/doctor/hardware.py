"""The processor, cores, memory and GPUs of this machine, found without torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from seedtune.cli.doctor.findings import Finding, size
from seedtune.numerics.machine import available_cores

SECONDS = 10.0
"""Longest wait for ``nvidia-smi``."""

QUERY = ("--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def processor() -> Iterator[Finding]:
    """Yield the processor's name and its vectors, as the kernels use them (by numba)."""
    yield Finding("processor", "name", processor_name())
    from seedtune.numerics.machine.processor import vector_name

    vectors = vector_name()
    slow = "no vectors that our kernels use: training on this CPU is slow"
    yield Finding("processor", "vectors", slow if vectors == "none" else vectors)


def processor_name(root: Path = Path("/")) -> str:
    """Return the name of the processor, or of its architecture."""
    for line in _lines(root / "proc/cpuinfo"):
        name, colon, value = line.partition(":")
        if colon and name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def cores() -> Iterator[Finding]:
    """Yield the machine's cores, and the threads that fit."""
    fit = available_cores.fitting()
    yield Finding("cores", "cores", str(fit.cores))
    yield Finding("cores", "threads that fit", f"{fit.threads}{f' ({fit.limit})' if fit.limit else ''}")


def memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Yield the memory of the machine, and a control group's limit on it."""
    figures = {
        line.partition(":")[0]: line.split()[1] for line in _lines(root / "proc/meminfo") if len(line.split()) > 1
    }
    if "MemTotal" in figures:
        free = f", {size(int(figures['MemAvailable']) * 1024)} available" if "MemAvailable" in figures else ""
        yield Finding("memory", "memory", f"{size(int(figures['MemTotal']) * 1024)}{free}")
    else:
        yield Finding("memory", "memory", "unknown on this system")
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        limit = "".join(_lines(root / "sys/fs/cgroup" / file))
        if limit.isdecimal() and int(limit) < int(figures.get("MemTotal", 0)) * 1024:
            yield Finding("memory", "limit", f"{size(int(limit))} (control group)")


def gpus() -> Iterator[Finding]:
    """Yield the GPUs that their driver lists."""
    from seedtune.cli.warming import ACCELERATORS

    found = list(_nvidia())
    drivers = [str(file) for file in ACCELERATORS if file.exists()]
    if drivers and not found:
        found = [f"a driver ({', '.join(drivers)}), which nvidia-smi does not describe"]
    for number, words in enumerate(found):
        yield Finding("gpus", f"GPU {number}", words)
    if not found:
        yield Finding("gpus", "GPU", "none found: models run on the CPU")


def _nvidia() -> Iterator[str]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return
    try:
        done = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, _, rest = line.partition(", ")
        memory_size, _, driver = rest.partition(", ")
        yield f"{name}, {memory_size}, driver {driver}"


def python() -> Iterator[Finding]:
    """Yield the version of Python, the operating system, and of seedtune."""
    from seedtune.types import __version__

    yield Finding("python", "Python", f"{platform.python_version()} ({platform.system()} {platform.machine()})", True)
    yield Finding("python", "seedtune", f"{__version__} ({Path(__file__).parents[2]})")
    if environment := os.environ.get("VIRTUAL_ENV", ""):
        yield Finding("python", "environment", environment)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
