"""Calls answered by a few workers while the caller does something else."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from seedtune.rewards.execution.call import Fault, RewardCall, RewardResult, failed, raised

Done = Callable[[RewardResult], object]

PATIENCE = 0.25
"""Seconds of waiting calls, at the pace so far, that are worth another worker."""

ENDING = 5.0
"""Seconds that closing waits for each worker's thread."""


class RewardWorker(Protocol):
    """Answers one call at a time."""

    prepared: float
    """Seconds that the last call's preparation took: starting a process, importing."""

    def call(self, call: RewardCall) -> RewardResult:
        """The function's answer; whatever goes wrong is a fault in it."""
        ...

    def stop(self) -> None:
        """End the call that runs, from any thread."""
        ...

    def close(self) -> None:
        """Release what the worker holds."""
        ...


class Pool:
    """At most ``limit`` workers, started one at a time while calls have to wait long, and kept until it is closed.

    Quick functions so have one worker, however long their imports take, and slow ones all of them.  A pool nobody
    holds any more closes itself, and so does every pool when the interpreter ends.
    """

    def __init__(self, make: Callable[[], RewardWorker], limit: int) -> None:
        self._desk = _Desk(make, limit)
        self._finalizer = weakref.finalize(self, self._desk.close)

    def submit(self, call: RewardCall, done: Done) -> None:
        """Have a call answered; ``done`` is told in a thread of the pool's."""
        self._desk.put(call, done)

    def close(self) -> None:
        """Drop calls that wait, end those that run, and release the workers."""
        self._finalizer()


@dataclass(slots=True)
class _Desk:
    """What the threads of a pool share; they know it and not the pool, so that nobody else keeps a pool alive."""

    make: Callable[[], RewardWorker]
    limit: int
    waiting: deque[tuple[RewardCall, Done]] = field(default_factory=deque)
    workers: list[RewardWorker] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    idle: int = 0
    pace: float = 0.0
    starting: bool = False
    closed: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def put(self, call: RewardCall, done: Done) -> None:
        with self.changed:
            self.waiting.append((call, done))
            self._grow()
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.waiting.clear()
            self.changed.notify_all()
            workers, threads = list(self.workers), list(self.threads)
        for worker in workers:
            worker.stop()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(ENDING)

    def _grow(self) -> None:
        """One more worker if calls will wait for long, and none is starting that may be all they need."""
        if not self.waiting or self.idle or self.starting or self.closed or len(self.threads) >= self.limit:
            return
        if not self.threads or len(self.waiting) * self.pace / len(self.threads) > PATIENCE:
            self.starting = True
            thread = threading.Thread(target=self._serve, name="seedtune-reward", daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve(self) -> None:
        worker = self.make()
        with self.changed:
            self.workers.append(worker)
        try:
            while self._serve_one(worker):
                pass
        finally:
            worker.close()

    def _serve_one(self, worker: RewardWorker) -> bool:
        """Answer the next call; False when there is none any more.  What waits for the next remembers no call."""
        task = self._next()
        if task is None:
            return False
        call, done = task
        began = time.monotonic()
        answer = _answer(worker, call)
        seconds = max(0.0, time.monotonic() - began - worker.prepared)
        with self.changed:
            self.pace = 0.5 * (self.pace + seconds) if self.pace else seconds
            self.starting = False
            self._grow()
        done(answer)
        return True

    def _next(self) -> tuple[RewardCall, Done] | None:
        with self.changed:
            self.idle += 1
            while not (self.waiting or self.closed):
                self.changed.wait()
            self.idle -= 1
            if self.closed:
                return None
            task = self.waiting.popleft()
            self._grow()
            return task


def _answer(worker: RewardWorker, call: RewardCall) -> RewardResult:
    try:
        return worker.call(call)
    except Exception as error:  # noqa: BLE001 - the named boundary: who waits for an answer must get one
        return failed(Fault("crash", f"could not be called: {raised(error)}"), call.count)
