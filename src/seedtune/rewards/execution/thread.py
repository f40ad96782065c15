"""Run reward functions that cannot or should not leave this process in a thread, which can be abandoned, not killed."""

from __future__ import annotations

import queue
import sys
import traceback
from functools import partial

from seedtune.rewards.execution.call import DETAILS, Fault, RewardCall, RewardResult, attempt, failed, fault_of
from seedtune.rewards.execution.deadline import CallThread


class ThreadWorker:
    """One thread for one function; a call that takes too long is abandoned, and the next call gets a new thread."""

    def __init__(self) -> None:
        self.prepared = 0.0
        self._thread = CallThread()

    def call(self, call: RewardCall) -> RewardResult:
        """Run the call and return its result; a hang fails the call."""
        try:
            answer, error = self._thread.call(partial(attempt, call.function, call.keywords, call.count), call.seconds)
        except queue.Empty:
            where = _stack(self._thread.ident)
            self.close()
            self._thread = CallThread()
            return failed(Fault("hang", f"took longer than {call.seconds:g} s", where), call.count)
        if error is not None:
            return failed(fault_of(error), call.count)
        return failed(Fault("crash", "was stopped"), call.count) if answer is None else answer

    def stop(self) -> None:
        """Stop waiting for the running call; callable from any thread."""
        self._thread.answers.put((None, None))

    def close(self) -> None:
        """End the thread after its current call."""
        self._thread.work.put(None)


def _stack(thread: int) -> str:
    """Format the current stack of a thread."""
    frame = sys._current_frames().get(thread)
    return "".join(traceback.format_stack(frame))[-DETAILS:] if frame is not None else ""
