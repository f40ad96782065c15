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
    old = signal.signal(signal.SIGTERM, (ours := lambda *_: None))
    try:
        with pytest.raises(KeyboardInterrupt), _kept_interrupt():
            ended_while_starting()
        assert signal.getsignal(signal.SIGTERM) is ours
        with pytest.raises(SystemExit), _kept_interrupt():
            sys.exit(3)
    finally:
        signal.signal(signal.SIGTERM, old)


def test_a_process_without_an_answer_to_sigterm_keeps_rays_which_lets_it_close_what_it_holds():
    old = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with _kept_interrupt():
            signal.signal(signal.SIGTERM, (rays := lambda number, _: sys.exit(number)))
        assert signal.getsignal(signal.SIGTERM) is rays
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with _kept_interrupt():
            signal.signal(signal.SIGTERM, rays)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, old)
