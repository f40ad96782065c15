"""Processes of vLLM's ranks for tests: made out of one that has imported vLLM, and quiet while they wait."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

IMPORTED = ("vllm.v1.executor.multiproc_executor", "vllm.v1.worker.cpu_worker")
IMPORTED += tuple(f"vllm.model_executor.models.{name}" for name in ("llama", "qwen2", "qwen3", "gemma3"))

SPIN = 0.02
"""Seconds for which a process that waits for messages keeps a core busy after each; vLLM's own are 1.0."""


def spin_less(change: Callable[..., None] = setattr) -> None:
    """Leave the cores to those who compute: there are no more of them than ranks."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    read = SpinCondition.record_read

    def record_read(condition: SpinCondition) -> None:
        read(condition)
        condition.last_read -= condition.busy_loop_s - SPIN  # the first message of all is waited for as in vLLM

    change(SpinCondition, "record_read", record_read)


def main(target: Callable[..., None], arguments: Mapping[str, Any]) -> None:
    """What a rank's process does."""
    gc.freeze()  # what vLLM imports is not looked through whenever a start collects
    spin_less()
    target(**arguments)


class Ranks(ForkServerContext):
    """Importing vLLM is most of what a rank does when it starts: here it is done once for all."""

    def __init__(self) -> None:
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))

    def Process(self, *, target: Callable[..., None], kwargs: Mapping[str, Any], **options: Any) -> ForkServerProcess:  # noqa: N802
        return ForkServerProcess(target=main, args=(target, kwargs), **options)
