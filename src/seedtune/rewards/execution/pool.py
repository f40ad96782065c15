"""A pool of workers that run reward calls in the background."""

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
"""Start another worker if the queued calls would take longer than this many seconds at the current pace."""

ENDING = 5.0
"""Seconds that `Pool.close` waits for each worker's thread."""


class RewardWorker(Protocol):
    """A worker that runs one call at a time."""

    prepared: float
    """Seconds of preparation (starting a process, importing) in the last call."""

    def call(self, call: RewardCall) -> RewardResult:
        """Run the call and return its result; errors are faults in the result."""
        ...

    def stop(self) -> None:
        """End the running call; callable from any thread."""
        ...

    def close(self) -> None:
        """Release the worker's resources."""
        ...


class Pool:
    """At most ``limit`` workers, started one at a time while calls queue for long, and kept until `close`.

    Quick functions therefore get one worker, however long their imports take, and slow ones get all.  A pool closes
    itself when it is garbage-collected and when the interpreter ends.
    """

    def __init__(self, make: Callable[[], RewardWorker], limit: int) -> None:
        self._desk = _Desk(make, limit)
        self._finalizer = weakref.finalize(self, self._desk.close)

    def submit(self, call: RewardCall, done: Done) -> None:
        """Queue a call; ``done`` receives the result in a thread of the pool."""
        self._desk.put(call, done)

    def close(self) -> None:
        """Drop queued calls, end running ones, and release the workers."""
        self._finalizer()


@dataclass(slots=True)
class _Desk:
    """The state shared by a pool's threads; they hold this, not the pool, so that the pool can be collected."""

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
        """Start one more worker if queued calls would wait long and no worker is starting already."""
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
        """Run the next call; False if the pool is closed.

        The thread holds no reference to a finished call while it waits for the next one.
        """
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
    except Exception as error:  # noqa: BLE001 - the named boundary: every caller must get a result
        return failed(Fault("crash", f"could not be called: {raised(error)}"), call.count)
