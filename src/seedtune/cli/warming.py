"""Compiles CPU kernels in the background, by `seedtune.engines.transformers.cpu_kernels.warm`, while a model loads."""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from seedtune.config.config import Config
from seedtune.numerics.machine import available_cores
from seedtune.rewards.sources.user_code import search_path

log = logging.getLogger("seedtune")

ACCELERATORS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""Device files of accelerator drivers: if one exists, ``device: auto`` may not be the CPU."""

_START = """
import json, os, sys
os.nice(10)
sys.path[:] = json.loads(sys.argv[1])
from seedtune.engines.transformers.cpu_kernels.warm import warm
warm(*sys.argv[2:])
"""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def compile_beside(config: Config) -> subprocess.Popen[bytes] | None:
    """Start a process that compiles the kernels for this configuration, if that saves time.

    The process is never waited for, and is killed when this process ends.  A run does not depend on it: errors are only
    logged.
    """
    try:
        return _start(config) if _worth_it(config) else None
    except Exception as error:  # noqa: BLE001 - the named boundary: a run only starts later without it
        log.info("kernels are not compiled ahead (%s: %s)", type(error).__name__, error)
        return None


def _worth_it(config: Config) -> bool:
    """Return whether the run is on this CPU, a core is spare, and the cache has no kernels yet."""
    threads = min(available_cores.available().threads, available_cores.fitting().threads)
    plain = config.perturbation == "lowrank" and config.dtype != "float16"
    if not plain or not on_cpu(config) or threads < 2:
        return False
    from seedtune.numerics.machine import caching

    folder = caching.folder()
    return folder is not None and next(folder.glob("*.nbi"), None) is None


def on_cpu(config: Config) -> bool:
    """Return whether the engine is known, without torch, to be transformers on the CPU."""
    device = config.transformers.device
    alone = device == "auto" and not any(file.exists() for file in ACCELERATORS)
    return config.engine == "transformers" and (device == "cpu" or alone)


def _start(config: Config) -> subprocess.Popen[bytes]:
    """Start the process; ``dtype: auto`` is taken as bfloat16, which most checkpoints and the built-in one use."""
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    words = dtype, config.weights_dtype, config.products
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _START, json.dumps(search_path()), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, **_ONE_THREAD},
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
