"""The child's side of a worker process: loads reward functions and calls them, one at a time, until told to end.

Started as a fresh interpreter, never forked from one that holds a model.  Its requests and replies are JSON; its
standard input is empty, and what it prints goes to the parent, which keeps a little of it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import importlib
import json
import math
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, NoReturn

from seedtune.rewards.execution.call import RewardResult, attempt, fault_of

Functions = dict[str, Callable[..., Any]]


def main(channel: int, lifeline: int, memory_mb: int) -> NoReturn:
    """Answer requests that arrive on the file descriptor ``channel``; end at once when ``lifeline`` closes."""
    _end_with(lifeline)
    _limit(memory_mb)
    faulthandler.enable()
    connection, functions = Connection(channel), Functions()
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        connection.send_bytes(json.dumps(_reply(functions, request)).encode())


def load(source: str) -> Callable[..., Any]:
    """The function that ``source`` names: a dotted path, ``file.py:function``, or an adapter of one of them."""
    if ":" in source or "@" in source:
        from seedtune.rewards.sources import load as sources_load  # not needed, and slow, for functions of modules

        return sources_load.load(source)
    target: Any
    target, name = _imported(source)
    for piece in name.split("."):
        target = getattr(target, piece)
    function: Callable[..., Any] = target
    return function


def _imported(source: str) -> tuple[ModuleType, str]:
    """The longest part of a dotted path that is a module, and the rest."""
    pieces = source.split(".")
    for count in range(len(pieces) - 1, 0, -1):
        name = ".".join(pieces[:count])
        try:
            return importlib.import_module(name), ".".join(pieces[count:])
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if count == 1 or not f"{name}.".startswith(f"{missing}."):
                raise
    raise ImportError(f"{source!r} is not a dotted path to a function")


def _reply(functions: Functions, request: dict[str, Any]) -> dict[str, Any]:
    source = request.get("source")
    if source is None:
        return {}
    if source not in functions:
        try:
            functions[source] = load(source)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the named boundary: user code
            return {"fault": fault_of(error)._replace(kind="load")}
    if "keywords" not in request:
        return {}
    # Just before the parent's patience ends, the place that hangs is written where the parent reads it.
    faulthandler.dump_traceback_later(request["seconds"], exit=False)
    owner = os.getpid()
    answer = attempt(functions[source], request["keywords"], request["count"])
    if os.getpid() != owner:  # a copy that user code forked must not answer, too
        os._exit(0)
    faulthandler.cancel_dump_traceback_later()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    return _plain(answer)


def _plain(answer: RewardResult) -> dict[str, Any]:
    distinct = set(answer.faults.values())
    if len(distinct) == 1 and len(answer.faults) == len(answer.values):
        return {"fault": distinct.pop()}
    values = [None if math.isnan(value) else value for value in answer.values]
    return {"values": values, "faults": list(answer.faults.items())}


def _end_with(lifeline: int) -> None:
    """Kill this process and all it has started as soon as the parent is gone.

    On Linux the kernel does it, even while user code holds the interpreter's lock; elsewhere a thread.
    """
    if sys.platform == "linux":
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()


def _watch(lifeline: int) -> None:
    with contextlib.suppress(OSError):
        os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def _limit(memory_mb: int) -> None:
    """Bound writable private memory (what is reserved but never written by a big library does not count)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_mb << 20, memory_mb << 20))
