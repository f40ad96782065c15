"""Call code that may raise or hang in a separate thread, which can be abandoned, not killed."""

from __future__ import annotations

import ctypes
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from seedtune.rewards.execution.call import (
    DETAILS,
    Fault,
    RewardCall,
    RewardResult,
    attempt,
    failed,
    fault_of,
    free_loop,
)

LOOK = 0.02
"""Seconds of observation; a computing thread uses the processor for at least a tenth of them."""


class _Call(NamedTuple):
    """A function to call, and where its result goes."""

    function: Callable[[], Any]
    result: Future[Any]


Calls = queue.SimpleQueue[_Call | None]


class TimedThread:
    """Run calls one after the other in one daemon thread, each for at most ``seconds``.

    A call that takes longer is abandoned: computing code is interrupted as soon as it executes Python, while waiting
    code (sleeps, reads) continues and its result is dropped.  Later calls run in a new thread.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._calls: Calls | None = None
        self._pending: Future[Any] = Future()
        self._stopped = False

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Return the finished call; it raises TimeoutError if it took too long (see `is_hang`)."""
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            self._thread = threading.Thread(target=_serve, args=(self._calls,), name="calls", daemon=True)
            self._thread.start()
        pending: Future[Any] = Future()
        self._pending = pending
        self._calls.put(_Call(function, pending))
        if self._stopped:
            self.stop()
        try:
            pending.exception(self.seconds)
        except TimeoutError:
            self._abandon(pending)
        return pending

    def stop(self) -> None:
        """Stop waiting for calls, now and later; callable from any thread."""
        self._stopped = True
        with suppress(InvalidStateError):
            self._pending.set_exception(InterruptedError("stopped"))

    def close(self) -> None:
        """Let the thread end after its current call."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None

    def _abandon(self, call: Future[Any]) -> None:
        """Fail a call with its stack, let its thread end, and interrupt it, or what it awaits, if that computes.

        A waiting thread is not interrupted: until it wakes up, the pending interrupt would make every other thread
        check for it at each function call, and under a tracer (coverage, a debugger) CPython 3.11 then never gets past
        a call.
        """
        frame = sys._current_frames().get(self._thread.ident or 0)
        error = TimeoutError(f"no answer within {self.seconds:g} seconds")
        error.add_note("".join(traceback.format_stack(frame))[-DETAILS:])
        with suppress(InvalidStateError):  # it has just finished
            call.set_exception(error)
        self.close()
        _interrupt(self._thread)
        free_loop(frame, _interrupt)


class ThreadWorker:
    """Run the calls of a reward function that cannot or should not leave this process; a hang fails its call."""

    prepared = 0.0

    def __init__(self) -> None:
        self._thread = TimedThread(0.0)
        self.stop, self.close = self._thread.stop, self._thread.close

    def call(self, call: RewardCall) -> RewardResult:
        """Run the call and return its result."""
        self._thread.seconds = call.seconds
        attempted = partial(attempt, call.function, call.keywords, call.count, seconds=call.seconds, state=call.state)
        done = self._thread.call(attempted)
        error = done.exception()
        if error is None:
            answer: RewardResult = done.result()
            return answer
        if is_hang(error):
            return failed(Fault("hang", f"took longer than {call.seconds:g} s", error.__notes__[0]), call.count)
        return failed(fault_of(error), call.count)


def is_hang(error: BaseException) -> bool:
    """Whether a call was abandoned after its time limit, rather than raised a TimeoutError of its own."""
    return isinstance(error, TimeoutError) and error.__traceback__ is None


def _serve(calls: Calls) -> None:
    while (call := calls.get()) is not None:
        with suppress(InvalidStateError):  # it was abandoned
            try:
                call.result.set_result(call.function())
            except BaseException as error:  # noqa: BLE001 - the named boundary: user code may raise anything, exit too
                call.result.set_exception(error)


def _interrupt(thread: threading.Thread) -> None:
    """Interrupt a computing thread as soon as it executes Python; leave a waiting thread alone."""
    ident, number = thread.ident, thread.native_id
    assert ident is not None
    assert number is not None
    if _computes(ident) or _is_ready(number):
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
