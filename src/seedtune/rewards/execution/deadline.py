"""Call code that may raise or hang in a separate thread, which is abandoned after a time limit."""

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
"""(returned value, None) or (None, exception)."""

LOOK = 0.02
"""Seconds of observation; a computing thread uses the processor for at least a tenth of them."""


class Patience:
    """Run calls one after the other in one thread, each for at most ``seconds``.

    A call that takes longer is abandoned: computing code is interrupted as soon as it executes Python, while waiting
    code (sleeps, reads) continues and its result is dropped.  Later calls run in a new thread.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._worker: CallThread | None = None

    def call(self, function: Callable[[], Any]) -> Result:
        """Return (result, None) or (None, exception); the exception is a TimeoutError if the call took too long."""
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
    """A daemon thread that runs calls; a hung call does not keep the program from ending."""

    def __init__(self) -> None:
        self.work: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._serve, name="calls", daemon=True)
        self.thread.start()

    @property
    def ident(self) -> int:
        """The thread's identifier in Python."""
        assert self.thread.ident is not None
        return self.thread.ident

    def call(self, function: Callable[[], Any], seconds: float) -> Result:
        """Return (result, None) or (None, exception); raise queue.Empty if the call runs longer than ``seconds``."""
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
        """End the thread after its current call, and interrupt the call if it computes.

        A waiting thread is not interrupted: until it wakes up, the pending interrupt would make every other thread
        check for it at each function call, and under a tracer (coverage, a debugger) CPython 3.11 then never gets past
        a call.
        """
        ident, number = self.ident, self.thread.native_id
        assert number is not None
        computes = _computes(ident) or _is_ready(number)
        self.work.put(None)
        if computes:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(SystemExit))


def _computes(ident: int) -> bool:
    """Whether a live thread is using the processor; False where the system does not report it (macOS, Windows)."""
    if sys.platform != "linux":
        return False
    clock = time.pthread_getcpuclockid(ident)
    before = time.clock_gettime(clock)
    time.sleep(LOOK)
    return time.clock_gettime(clock) - before > LOOK / 10


def _is_ready(number: int) -> bool:
    """Whether a thread is ready to run, even while others use the processor; False if the system does not say."""
    try:
        return Path(f"/proc/self/task/{number}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] == "R"
    except OSError:
        return False
