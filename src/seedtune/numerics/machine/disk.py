"""Locks and flushes, as far as a disk has them (some network and user-space file systems lack one or the other), and
whole files, written where nobody has put a link.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

LACKING = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""Errors by which a disk says that it does not have what was asked for."""


def put(path: Path, data: bytes) -> None:
    """Write a file under a hidden name and rename it; on OSError the old file is kept.

    Both names may be known to others, who may have put links there: neither is followed.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            file.write(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


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
