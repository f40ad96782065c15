"""A pool of workers that run reward calls in the background."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from seedtune.rewards.execution.call import Fault, RewardCall, RewardResult, failed, raised
from seedtune.rewards.execution.process import ProcessWorker
from seedtune.rewards.execution.thread import ThreadWorker

Done = Callable[[RewardResult], object]
RewardWorker = ProcessWorker | ThreadWorker

MAX_WAIT = 0.25
"""Start another worker if the queued calls would take longer than this many seconds at the current pace."""

ENDING = 5.0
"""Seconds that `Pool.close` waits for each worker's thread."""


class Pool:
    """At most ``limit`` workers, started one at a time while calls queue for long, and kept until `close`.

    Quick functions therefore get one worker, however long their imports take, and slow ones get all.
    """

    def __init__(self, make: Callable[[], RewardWorker], limit: int) -> None:
        self._make, self._limit = make, limit
        self.workers: list[RewardWorker] = []
        self._threads: list[threading.Thread] = []
        self._waiting: deque[tuple[RewardCall, Done]] = deque()
        self._changed = threading.Condition()
        self._idle, self._pace = 0, 0.0
        self._starting = self._closed = False

    def submit(self, call: RewardCall, done: Done) -> None:
        """Queue a call; ``done`` receives the result in a thread of the pool."""
        with self._changed:
            self._waiting.append((call, done))
            self._grow()
            self._changed.notify()

    def close(self) -> None:
        """Drop queued calls, end running ones, and release the workers."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
            workers, threads = list(self.workers), list(self._threads)
        for worker in workers:
            worker.stop()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(ENDING)

    def _grow(self) -> None:
        """Start one more worker if queued calls would wait long and no worker is starting already."""
        if not self._waiting or self._idle or self._starting or self._closed or len(self._threads) >= self._limit:
            return
        if not self._threads or len(self._waiting) * self._pace / len(self._threads) > MAX_WAIT:
            self._starting = True
            self._threads.append(threading.Thread(target=self._serve, name="seedtune-reward", daemon=True))
            self._threads[-1].start()

    def _serve(self) -> None:
        worker = self._make()
        with self._changed:
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
        try:
            answer = worker.call(call)
        except Exception as error:  # noqa: BLE001 - the named boundary: every caller must get a result
            answer = failed(Fault("crash", f"could not be called: {raised(error)}"), call.count)
        seconds = max(0.0, time.monotonic() - began - worker.prepared)
        with self._changed:
            self._pace = 0.5 * (self._pace + seconds) if self._pace else seconds
            self._starting = False
            self._grow()
        done(answer)
        return True

    def _next(self) -> tuple[RewardCall, Done] | None:
        with self._changed:
            self._idle += 1
            while not (self._waiting or self._closed):
                self._changed.wait()
            self._idle -= 1
            if self._closed:
                return None
            task = self._waiting.popleft()
            self._grow()
            return task
