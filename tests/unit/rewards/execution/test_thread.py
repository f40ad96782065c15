"""Calls with a time limit: results, errors, and hangs, of which computing ones are interrupted."""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest

from seedtune.rewards.execution import thread
from seedtune.rewards.execution.call import RewardCall, awaited
from seedtune.rewards.execution.thread import ThreadWorker, TimedThread, is_hang
from waiting import BOUND


@pytest.fixture
def calls():
    made = TimedThread(BOUND)
    yield made
    made.close()


def spin() -> None:
    while True:
        pass


def left_behind(calls: TimedThread, function) -> threading.Thread:
    """The thread of a call that took too long, after which the next call is answered."""
    threads: list[threading.Thread] = []

    def call() -> None:
        threads.append(threading.current_thread())
        function()

    calls.seconds = 0.05
    error = calls.call(call).exception()
    assert is_hang(error)
    assert str(error) == "no answer within 0.05 seconds"
    calls.seconds = BOUND
    assert calls.call(lambda: 7).result() == 7
    return threads[0]


def test_a_call_gives_what_it_returns_or_raises_and_exit_is_an_error_too(calls):
    assert calls.call(lambda: 5).result() == 5
    for raised in (ValueError("no"), SystemExit(3), TimeoutError("of its own")):
        error = calls.call(lambda raised=raised: (_ for _ in ()).throw(raised)).exception()
        assert error is raised
        assert not is_hang(error)


def test_all_calls_are_made_in_one_thread_that_is_not_ours(calls):
    names = {calls.call(threading.get_ident).result() for _ in range(3)}
    assert len(names) == 1
    assert threading.get_ident() not in names


def test_a_call_that_computes_for_ever_is_ended(calls):
    left = left_behind(calls, spin)
    left.join(BOUND)
    assert not left.is_alive()


def test_a_call_that_waits_goes_on_and_the_next_call_is_answered(calls):
    released = threading.Event()
    left = left_behind(calls, released.wait)
    assert left.is_alive()
    released.set()
    left.join(BOUND)
    assert not left.is_alive()


@pytest.mark.parametrize("held", [spin, threading.Event().wait], ids=["computing", "waiting"])
def test_an_async_call_that_never_awaits_costs_no_later_one(calls, held):
    async def holds() -> None:
        held()

    async def answers() -> int:
        await asyncio.sleep(0)
        return 7

    async def exits() -> None:
        sys.exit(3)

    left = left_behind(calls, lambda: awaited(holds()))
    assert calls.call(lambda: awaited(answers())).result() == 7
    if held is spin:
        left.join(BOUND)
        assert not left.is_alive()
    assert isinstance(calls.call(lambda: awaited(exits())).exception(), SystemExit)
    assert calls.call(lambda: awaited(answers())).result() == 7


def test_an_async_call_that_awaits_too_long_leaves_the_event_loop_to_others(calls):
    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    before = calls.call(lambda: awaited(loop())).result()
    left_behind(calls, lambda: awaited(asyncio.sleep(0.2)))
    assert calls.call(lambda: awaited(loop())).result() is before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what a thread does")
def test_a_call_that_computes_is_known_also_where_others_have_the_processor(calls, monkeypatch):
    """As on a busy machine: it has used no time when it is looked at, and is ready to."""
    monkeypatch.setattr(thread.time, "clock_gettime", lambda clock: 0.0)
    left = left_behind(calls, spin)
    left.join(BOUND)
    assert not left.is_alive()


def test_a_reward_that_hangs_in_a_thread_says_where():
    worker, released = ThreadWorker(), threading.Event()

    def waits(completions):
        released.wait(BOUND)

    fault = worker.call(RewardCall(waits, "", {"completions": [""]}, 1, 0.05)).faults[0]
    assert (fault.kind, fault.message) == ("hang", "took longer than 0.05 s")
    assert "in waits" in fault.details
    released.set()
    worker.close()


def test_stopping_ends_the_wait_for_a_call_now_and_later():
    worker, released = ThreadWorker(), threading.Event()
    stopping = threading.Timer(0.05, worker.stop)
    stopping.start()
    for _ in range(2):
        call = RewardCall(lambda completions: [released.wait(BOUND)], "", {"completions": [""]}, 1, BOUND)
        assert worker.call(call).faults[0].message == "raised InterruptedError: stopped"
    released.set()
    worker.close()
    stopping.join()
