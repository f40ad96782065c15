"""Reward functions that cannot leave this process, or should not, in a thread: it can be left, but not ended."""

from __future__ import annotations

import queue
import sys
import threading
import traceback

from seedtune.rewards.execution.call import DETAILS, Answer, Call, Fault, attempt, failed, fault_of


class ThreadWorker:
    """One thread for one function; a call that takes too long is left to itself, and the next gets a new thread."""

    def __init__(self) -> None:
        self.prepared = 0.0
        self._begin()

    def _begin(self) -> None:
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=_work, args=(self._calls, self._answers), daemon=True)
        self._thread.start()

    def call(self, call: Call) -> Answer:
        """The function's answer; a hang costs the call."""
        self._calls.put(call)
        try:
            answer = self._answers.get(timeout=call.seconds)
        except queue.Empty:
            where = _stack(self._thread.ident)
            self.close()
            self._begin()
            return failed(Fault("hang", f"took longer than {call.seconds:g} s", where), call.count)
        return failed(Fault("crash", "was stopped"), call.count) if answer is None else answer

    def stop(self) -> None:
        """Let go of a call that runs, from any thread."""
        self._answers.put(None)

    def close(self) -> None:
        """Let the thread end when it comes back."""
        self._calls.put(None)


def _work(calls: queue.SimpleQueue[Call | None], answers: queue.SimpleQueue[Answer | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            answers.put(attempt(call.function, call.keywords, call.count))
        except BaseException as error:  # noqa: BLE001 - the named boundary: not even an interrupt ends the thread
            answers.put(failed(fault_of(error), call.count))


def _stack(thread: int | None) -> str:
    """Where a thread is."""
    frame = sys._current_frames().get(thread or 0)
    return "".join(traceback.format_stack(frame))[-DETAILS:] if frame is not None else ""
