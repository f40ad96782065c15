"""Folders for reproducible files: converted models and compiled kernels."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from seedtune.config.paths import absolute
from seedtune.errors import ConfigError

OTHERS_WRITE = 0o022
"""Permission bits that let a group or everyone write."""


def candidates() -> Iterator[Path]:
    """Yield folders that may hold caches, the preferred one first.

    ``$SEEDTUNE_CACHE``, ``$XDG_CACHE_HOME/seedtune``, ``~/.cache/seedtune``, and this user's folder among the
    temporary files.  They may not exist yet.  Raises ConfigError if ``$SEEDTUNE_CACHE`` is no path.
    """
    if chosen := os.environ.get("SEEDTUNE_CACHE"):
        try:
            path = absolute(chosen)
        except ValueError as error:
            raise ConfigError(f"SEEDTUNE_CACHE={chosen!r}: {error}.") from error
        yield Path(path)
    if (shared := Path(os.environ.get("XDG_CACHE_HOME", ""))).is_absolute():
        yield shared / "seedtune"
    with suppress(RuntimeError):  # raised for a user without $HOME and without an entry in the password file
        yield Path.home() / ".cache" / "seedtune"
    if (temporary := _temporary()) is not None:
        yield temporary


def trusted() -> Iterator[Path]:
    """Yield the candidates that models may be read from.

    Only the first if ``$SEEDTUNE_CACHE`` names it; the one among the temporary files only if this user owns it.
    """
    for root in candidates():
        with suppress(OSError):
            if not _is_temporary(root) or _is_private(root):
                yield root
        if os.environ.get("SEEDTUNE_CACHE"):
            return


def private_folder(*parts: str) -> Path | None:
    """Return a folder that only this user can write, below the first usable candidate; None if there is none.

    For files that are trusted when they are read again, such as compiled code.
    """
    for root in candidates():
        if _is_temporary(root) and make_private(root) is None:
            continue
        if (folder := make_private(root.joinpath(*parts))) is not None:
            return folder
    return None


def make_private(folder: Path) -> Path | None:
    """Create ``folder`` if it is missing; return it if only this user can write in it, else None."""
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder if _is_private(folder) and _can_write(folder) else None
    except OSError:
        return None


def writable_folder(*parts: str) -> Path | None:
    """Return a writable folder below the first usable candidate, or None; a folder the user named has no fallback."""
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
    """Return this user's folder among the temporary files, if the system has a folder for those."""
    try:
        return Path(tempfile.gettempdir()) / f"seedtune-{os.geteuid()}"
    except FileNotFoundError:
        return None


def _is_temporary(root: Path) -> bool:
    return root == _temporary()


def _is_private(folder: Path) -> bool:
    """Return whether a path is a folder, not a link, owned by this user and not writable by others."""
    found = folder.lstat()
    return not folder.is_symlink() and found.st_uid == os.geteuid() and not found.st_mode & OTHERS_WRITE


def _can_write(folder: Path) -> bool:
    with tempfile.TemporaryFile(dir=folder):
        return True
