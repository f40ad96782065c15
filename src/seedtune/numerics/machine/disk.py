"""Locks and flushes, as far as a disk has them: some network and user-space file systems lack one or the other."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

LACKING = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""Errors by which a disk says that it does not have what was asked for."""


def lock(file: int) -> bool:
    """Lock a file for this process; False if the disk has no locks.  BlockingIOError if another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in LACKING:
            raise
        return False
    return True


def flush(file: int) -> None:
    """Flush a file to the disk, unless the disk cannot; OSError if flushing fails."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in LACKING:
            raise


def flush_path(path: Path) -> None:
    """Flush a file, or the entries of a folder that can be opened, to the disk, as `flush` does."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():
            return
        raise
    try:
        flush(file)
    finally:
        os.close(file)
