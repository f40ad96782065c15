"""Calling code that may raise or hang: in a thread of its own, which is given up when it takes too long."""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = tuple[Any, BaseException | None]
"""What a call returned, or what it raised."""

LOOK = 0.02
"""Seconds in which a thread that computes uses the processor for at least a tenth of them."""


class Patience:
    """Calls one after the other, all in one thread, ``seconds`` each at the most.

    A call that takes longer is left behind: code that computes is interrupted as soon as it is in Python, what waits
    (sleeps, reads) goes on unheard.  Later calls run in a new thread.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._worker: CallThread | None = None

    def call(self, function: Callable[[], Any]) -> Result:
        """(result, None), or (None, what was raised); TimeoutError if it took too long."""
        if self._worker is None:
            self._worker = CallThread()
        try:
            return self._worker.call(function, self.seconds)
        except queue.Empty:
            self._worker.abandon()
            self._worker = None
            return None, TimeoutError(f"no answer within {self.seconds:g} seconds")

    def close(self) -> None:
        """Let the thread end."""
        if self._worker is not None:
            self._worker.work.put(None)
            self._worker = None


class CallThread:
    """A thread that answers calls; a daemon, so that one that hangs does not keep the program from ending."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve, name="calls", daemon=True)
        self.thread.start()

    @property
    def ident(self) -> int:
        """The thread's number in Python."""
        assert self.thread.ident is not None
        return self.thread.ident

    def call(self, function: Callable[[], Any], seconds: float) -> Result:
        """(result, None), or (None, what was raised); queue.Empty if it took too long and goes on."""
        self.work.put(function)
        return self.answers.get(timeout=seconds)

    def _serve(self) -> None:
        while (function := self.work.get()) is not None:
            try:
                answer: Result = (function(), None)
            except BaseException as error:  # noqa: BLE001 - the named boundary: user code may raise anything, exit too
                answer = (None, error)
            self.answers.put(answer)

    def abandon(self) -> None:
        """End after the call in hand, and interrupt it if it computes.

        A thread that waits is left alone: until it wakes up, its pending interrupt would make every other thread look
        for it at each function call, and under a tracer (coverage, a debugger) CPython 3.11 then never gets past one.
        """
        ident, number = self.ident, self.thread.native_id
        assert number is not None
        computes = _computes(ident) or _is_ready(number)
        self.work.put(None)
        if computes:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))


def _computes(ident: int) -> bool:
    """Whether a living thread uses the processor just now; never where the system does not tell (macOS, Windows)."""
    if sys.platform != "linux":
        return False
    clock = time.pthread_getcpuclockid(ident)
    before = time.clock_gettime(clock)
    time.sleep(LOOK)
    return time.clock_gettime(clock) - before > LOOK / 10


def _is_ready(number: int) -> bool:
    """Whether a thread would compute if the machine were not busy with others; never where the system does not tell."""
    try:
        return Path(f"/proc/self/task/{number}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False
