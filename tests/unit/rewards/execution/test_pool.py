"""The pool: workers start while calls wait, and end with it."""

from __future__ import annotations

import threading
import time

from seedtune.rewards.execution.call import RewardCall, RewardResult
from seedtune.rewards.execution.pool import Pool
from waiting import BOUND, wait_until


class Slow:
    """A worker that waits to be let go."""

    gate = threading.Event()
    made = closed = 0
    prepared = 0.0

    def __init__(self) -> None:
        Slow.made += 1

    def call(self, call: RewardCall) -> RewardResult:
        self.gate.wait(BOUND)
        return RewardResult([1.0])

    def stop(self) -> None:
        self.gate.set()

    def close(self) -> None:
        Slow.closed += 1


def test_workers_start_one_at_a_time_while_calls_wait_and_end_with_the_pool():
    Slow.made = Slow.closed = 0
    Slow.gate.clear()
    pool, done = Pool(Slow, 3), []
    for _ in range(9):
        pool.submit(RewardCall(len, "", {}, 1, 1.0), done.append)
    wait_until(lambda: Slow.made)
    time.sleep(0.1)  # in which more would be made
    assert Slow.made == 1
    Slow.gate.set()
    wait_until(lambda: len(done) == 9)
    assert 1 <= Slow.made <= 3
    pool.close()
    assert Slow.closed == Slow.made


class Ready:
    """A worker that prepares for long and answers at once."""

    made = 0
    prepared = 60.0

    def __init__(self) -> None:
        Ready.made += 1

    def call(self, call: RewardCall) -> RewardResult:
        return RewardResult([1.0])

    def stop(self) -> None: ...

    def close(self) -> None: ...


def test_quick_functions_have_one_worker_whatever_their_imports_take():
    pool, done = Pool(Ready, 8), []
    for _ in range(50):
        pool.submit(RewardCall(len, "", {}, 1, 1.0), done.append)
    wait_until(lambda: len(done) == 50)
    pool.close()
    assert Ready.made == 1
