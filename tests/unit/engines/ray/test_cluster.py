"""The connection to Ray leaves the process's answers to signals alone."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from seedtune.engines.ray.cluster import _kept_interrupt


def ended_while_starting() -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does
    os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_while_ray_starts_is_an_interrupt_and_later_one_has_its_old_answer():
    old = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _kept_interrupt():
        ended_while_starting()
    assert signal.getsignal(signal.SIGTERM) is old
    with pytest.raises(SystemExit), _kept_interrupt():
        sys.exit(3)
