"""The parent of a worker process, which ends it with all its descendants, also those in sessions of their own."""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_PDEATHSIG, _SUBREAPER = 1, 36
"""Options of Linux's prctl: the signal at the parent's end, and adopting descendants whose parents have ended."""


def supervise(lifeline: int, *closed: int) -> None:
    """Fork and return in the child.

    This process runs no other code.  When the child ends, ``lifeline`` closes or SIGTERM arrives, it kills every
    descendant (elsewhere than on Linux the child's process group) and ends as the child did.  The files ``closed`` are
    the child's alone, and so is the output.
    """
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_SUBREAPER, 1)
    own, child = os.getpid(), os.fork()
    if child:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        for file in closed:
            os.close(file)
        _end_like(_awaited(child, signals, lifeline))
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    for file in (signals, wake, lifeline):
        os.close(file)
    os.setpgid(0, 0)
    _prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != own:
        os._exit(1)


def _awaited(child: int, signals: int, lifeline: int) -> int:
    """Wait for the child's end, or a reason to end it, and kill all descendants; return the child's status."""
    status, stop = None, False
    while status is None and not stop:
        ready, _, _ = select.select([signals, lifeline], [], [])
        stop = lifeline in ready or signal.SIGTERM in os.read(signals, 1 << 12)
        for pid, ended in _ended(os.WNOHANG):
            status = ended if pid == child else status
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    while True:
        killed = [_kill(pid) for pid in _children()]
        found = next(_ended(0), None) if any(killed) or not killed else None
        if found is None:
            return signal.SIGKILL if status is None else status
        status = found[1] if found[0] == child else status


def _kill(pid: int) -> bool:
    """Kill a process; return whether that was allowed: another user's (setuid, sudo) is left alone."""
    with suppress(ProcessLookupError):
        try:
            os.kill(pid, signal.SIGKILL)
        except PermissionError:
            return False
    return True


def _ended(options: int) -> Iterator[tuple[int, int]]:
    """Yield children that have ended, with their statuses; none are left at the end, or none that have ended."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, options))[0]:
            yield found


def _children() -> Iterator[int]:
    own = str(os.getpid())
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if file.read_text("utf-8", "replace").rpartition(")")[2].split()[1] == own:
                yield int(file.parent.name)


def _end_like(status: int) -> NoReturn:
    """End with the exit code or by the signal of another process."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with suppress(OSError):  # raised for SIGKILL, which has no other answer
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
