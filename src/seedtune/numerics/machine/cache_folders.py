"""Folders for what can be made again: converted models and compiled kernels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OTHERS_WRITE = 0o022
"""Permission bits by which a group or everyone may write."""


def candidates() -> Iterator[Path]:
    """Folders that may hold caches, the preferred one first.

    ``$SEEDTUNE_CACHE``, ``$XDG_CACHE_HOME/seedtune``, ``~/.cache/seedtune``, and a folder of this user's among the
    temporary files.  None of them need exist.
    """
    if chosen := os.environ.get("SEEDTUNE_CACHE"):
        yield Path(chosen).expanduser().absolute()
    if (shared := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        yield shared / "seedtune"
    with suppress(RuntimeError):  # raised for a user without $HOME and without an entry in the password file
        yield Path.home() / ".cache" / "seedtune"
    if (temporary := _temporary()) is not None:
        yield temporary


def trusted() -> Iterator[Path]:
    """The candidates that models may be read from.

    Only the first if ``$SEEDTUNE_CACHE`` names it, and the one among the temporary files only if it is this user's.
    """
    for root in candidates():
        with suppress(OSError):
            if not _is_temporary(root) or _is_private(root):
                yield root
        if os.environ.get("SEEDTUNE_CACHE"):
            return


def private_folder(*parts: str) -> Path | None:
    """A folder that only this user can write, below the first candidate where there can be one; None without any.

    For files that are trusted when they are read again, as compiled code is.
    """
    for root in candidates():
        if _is_temporary(root) and make_private(root) is None:
            continue
        if (folder := make_private(root.joinpath(*parts))) is not None:
            return folder
    return None


def make_private(folder: Path) -> Path | None:
    """``folder``, made where it is missing, if only this user can write in it, else None."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder if _is_private(folder) and _can_write(folder) else None
    except OSError:
        return None


def writable_folder(*parts: str) -> Path | None:
    """A folder below the first candidate that can be written, or None; one that a user has named is the only one."""
    for root in candidates():
        folder = root.joinpath(*parts)
        if _is_temporary(root) and make_private(root) is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if _can_write(folder):
                return folder
        except OSError:
            pass
        if os.environ.get("SEEDTUNE_CACHE"):
            return None
    return None


def _temporary() -> Path | None:
    """This user's folder among the temporary files, where there is a place for those."""
    try:
        return Path(tempfile.gettempdir()) / f"seedtune-{os.geteuid()}"
    except FileNotFoundError:
        return None


def _is_temporary(root: Path) -> bool:
    return root == _temporary()


def _is_private(folder: Path) -> bool:
    """Whether it is a folder, no link, of this user's, and closed to the writing of others."""
    found = folder.lstat()
    return not folder.is_symlink() and found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE


def _can_write(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder):
        return True
