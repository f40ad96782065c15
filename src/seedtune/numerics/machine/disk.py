"""Locks and flushes, as far as a disk has them (some network and user-space file systems lack one or the other), and
whole files, written through no link.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import secrets
from contextlib import suppress
from pathlib import Path

LACKING = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
"""Error numbers of a file system that lacks locks or flushes."""

ABANDONED = 60.0
"""Seconds after which a part of a file, to which nothing is added, is that of a killed process."""


def put(path: Path, data: bytes) -> None:
    """Write a file under a hidden name of its own and rename it; on OSError the old file is kept.

    The last of several writers wins.  Others may have put a link in the file's place: it is not followed.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            file.write(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    with suppress(OSError):
        now = path.lstat().st_mtime  # by the disk's clock
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
            if left.lstat().st_mtime < now - ABANDONED:
                left.unlink(missing_ok=True)


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
