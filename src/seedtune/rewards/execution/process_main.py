"""The child's side of a worker process: load reward functions and call them, one at a time, until the parent ends it.

It is started as a fresh interpreter, never forked from a process that holds a model.  Requests and replies are JSON;
standard input is empty, and printed output goes to the parent, which keeps an excerpt.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import sys
from collections.abc import Callable
from io import TextIOWrapper
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from seedtune.rewards.execution.call import (
    Fault,
    RewardResult,
    TrainerState,
    attempt,
    failed,
    fault_of,
    raised,
    received,
)
from seedtune.rewards.execution.supervisor import supervise
from seedtune.rewards.sources.adapters import load

Functions = dict[str, Callable[..., Any]]


def main(channel: int, lifeline: int, memory_mb: int) -> NoReturn:
    """Serve requests from the file descriptor ``channel`` with at most ``memory_mb`` MiB (0: no limit).

    The process ends at once, with everything it started, when ``lifeline`` closes.
    """
    supervise(lifeline, channel)
    _limit(memory_mb)
    for stream in (sys.stdout, sys.stderr):  # what user code prints costs no call, in any locale
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    faulthandler.enable()
    connection, functions = Connection(channel), Functions()
    while True:
        try:
            request = received(connection.recv_bytes())
        except (EOFError, OSError):
            os._exit(0)
        connection.send_bytes(_encoded(_reply(functions, request)))


def _reply(functions: Functions, request: dict[str, Any]) -> RewardResult:
    """Load the function of a request; call it if there are keywords, too."""
    if not request:
        return RewardResult([])
    source = request["source"]
    if source not in functions:
        try:
            functions[source] = load(source)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the named boundary: user code
            return failed(fault_of(error), 1)
    if "keywords" not in request:
        return RewardResult([])
    # Just before the parent's time-out, dump the traceback of a hung call to the output that the parent reads.
    try:
        faulthandler.dump_traceback_later(request["seconds"], exit=False)
    except RuntimeError as error:  # the memory limit leaves no room for its thread
        return failed(Fault("memory", raised(error)), request["count"])
    owner = os.getpid()
    state = request["state"] and TrainerState(*request["state"])
    answer = attempt(functions[source], request["keywords"], request["count"], state=state)
    if os.getpid() != owner:  # a child that user code forked must not reply, too
        os._exit(0)
    faulthandler.cancel_dump_traceback_later()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    return answer


def _encoded(answer: RewardResult) -> bytes:
    """Encode a result as JSON: the values, each fault with the completions that it concerns, and what was logged."""
    places: dict[Fault, list[int]] = {}
    for place, fault in answer.faults.items():
        places.setdefault(fault, []).append(place)
    return json.dumps([answer.values, list(places.items()), answer.columns, answer.metrics]).encode()


def _limit(memory_mb: int) -> None:
    """Limit writable private memory (memory that a big library reserves but never writes does not count)."""
    if memory_mb:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]  # of the site: it can be lowered only
        most = memory_mb << 20 if hard == resource.RLIM_INFINITY else min(memory_mb << 20, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
