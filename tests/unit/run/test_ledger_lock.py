"""The lock of a run directory: one process trains there, and disks without locks or flushes are made do with."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import waiting
from ledgers import HEADER, begun, record, write
from seedtune.errors import LedgerError, RunError, StorageError
from seedtune.numerics.machine import disk
from seedtune.run import ledger
from seedtune.run.ledger import Ledger

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ledger.__file__).parents[2])}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ledger.jsonl"


def test_a_second_process_is_refused_while_the_first_trains_and_changes_nothing(path):
    before = write(path)
    book, _ = Ledger.resume(path)
    code = f"from seedtune.run.ledger import Ledger; from pathlib import Path; Ledger.resume(Path({str(path)!r}))"
    second = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )
    book.close()
    assert second.returncode == 1
    assert "RunError" in second.stderr
    assert "is being trained by another process" in second.stderr
    assert path.read_bytes() == before
    Ledger.resume(path)[0].close()


def test_a_run_to_come_is_locked_before_it_has_a_first_line(path):
    with (
        Ledger.claimed(path),
        pytest.raises(RunError, match="is being trained by another process"),
        Ledger.claimed(path),
    ):
        pass
    assert not path.exists()
    begun(path, HEADER).close()


def test_a_start_whose_file_another_failed_start_deleted_is_refused(path, monkeypatch):
    """It has opened the file that the other deletes, and would write to a file without a name."""
    with monkeypatch.context() as patch:
        patch.setattr(disk, "lock", lambda _: path.unlink() is None)
        with pytest.raises(RunError, match="is being trained by another process"):
            Ledger(path)
    assert not path.exists()


FORKED = """
import os, sys, time
from pathlib import Path
from seedtune.run.ledger import Ledger
book, _ = Ledger.resume(Path(sys.argv[1]))
if os.fork() == 0:
    os.write(1, b"forked")
    sys.stdin.read()  # until the test ends
    os._exit(0)
os.kill(os.getpid(), 9)
"""


def test_a_child_of_a_killed_process_does_not_keep_the_lock(path):
    write(path)
    child = subprocess.Popen(
        [sys.executable, "-c", FORKED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    )
    with child:
        assert child.stdout.read(6) == b"forked"
        assert child.wait(waiting.BOUND) == -signal.SIGKILL
        Ledger.resume(path)[0].close()
        child.stdin.close()


@pytest.mark.parametrize("number", sorted(disk.LACKING))
def test_a_disk_without_locks_and_flushes_is_told_once_and_a_run_trains_there(path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(os, "fsync", refuse)
    book = begun(path, HEADER)
    book.append(record(0))
    book.close()
    assert ledger.read(path).generations == 1
    assert {r.getMessage() for r in caplog.records} == {
        f"the disk of {path.parent} has no locks: let only one process at a time train there"
    }


def test_a_lock_that_fails_otherwise_is_an_error_of_one_line(path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(StorageError, match=r"cannot write .*Input/output error"):
        begun(path, HEADER)


def test_a_folder_that_cannot_be_opened_is_not_flushed(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "denied")

    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "open", refuse)
    disk.flush_path(tmp_path)
    with pytest.raises(PermissionError):
        disk.flush_path(tmp_path / "file")


def test_a_failed_resume_lets_go_of_the_lock(path):
    whole = write(path)
    path.write_bytes(b"x" + whole[1:])
    with pytest.raises(LedgerError):
        Ledger.resume(path)
    path.write_bytes(whole)
    Ledger.resume(path)[0].close()
