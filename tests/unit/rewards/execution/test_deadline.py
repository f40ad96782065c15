"""Calls that hang are left behind: what computes is interrupted, what waits disturbs nobody."""

from __future__ import annotations

import sys
import threading

import pytest

from seedtune.rewards.execution import deadline
from seedtune.rewards.execution.deadline import Patience
from waiting import BOUND


def spin() -> None:
    while True:
        pass


def left_behind(function) -> threading.Thread:
    """The thread of a call that took too long."""
    threads: list[threading.Thread] = []

    def call() -> None:
        threads.append(threading.current_thread())
        function()

    _, error = Patience(0.05).call(call)
    assert isinstance(error, TimeoutError)
    return threads[0]


def test_a_call_that_computes_for_ever_is_ended():
    thread = left_behind(spin)
    thread.join(BOUND)
    assert not thread.is_alive()


def test_a_call_that_waits_goes_on_and_the_next_call_is_answered():
    released = threading.Event()
    thread = left_behind(released.wait)
    assert Patience(BOUND).call(lambda: 7) == (7, None)
    assert thread.is_alive()
    released.set()
    thread.join(BOUND)
    assert not thread.is_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what a thread does")
def test_a_call_that_computes_is_known_also_where_others_have_the_processor(monkeypatch):
    """As on a busy machine: it has used no time when it is looked at, and is ready to."""
    monkeypatch.setattr(deadline.time, "clock_gettime", lambda clock: 0.0)
    thread = left_behind(spin)
    thread.join(BOUND)
    assert not thread.is_alive()
