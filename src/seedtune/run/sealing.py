"""JSON lines sealed by a checksum over themselves and the previous line, and files marked with the user's own key."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedtune.config.foreign_data import parse_json
from seedtune.numerics.machine import cache_folders, disk

log = logging.getLogger("seedtune")

_CHECK = ',"check":"'
_CHECK_LENGTH = len(_CHECK) + 16 + 2


def seal(data: Mapping[str, Any], previous: str = "") -> tuple[bytes, str]:
    """Encode ``data`` as a JSON line that ends with a checksum over itself and ``previous``; return both."""
    body = json.dumps(data, separators=(",", ":"), allow_nan=False)[:-1].encode()
    check = _checksum(previous, body)
    return body + f'{_CHECK}{check}"}}\n'.encode(), check


def unseal(line: bytes, previous: str = "") -> tuple[dict[str, Any], str] | None:
    """Return the content and checksum of a line without its newline; None if the checksum is wrong."""
    check = matching(line, previous)
    if check is None:
        return None
    try:
        data = parse_json(line[:-_CHECK_LENGTH] + b"}")
    except ValueError:
        return None
    return (data, check) if isinstance(data, dict) else None


def matching(line: bytes, previous: str) -> str | None:
    """Return the checksum of a line, or None if the line does not end with it."""
    expected = _checksum(previous, line[:-_CHECK_LENGTH])
    return expected if line[-_CHECK_LENGTH:] == f'{_CHECK}{expected}"}}'.encode() else None


def _checksum(previous: str, body: bytes) -> str:
    return hashlib.blake2b(previous.encode() + body, digest_size=8).hexdigest()


# ------------------------------------------------------------------- the user's mark

_MARK = b"# written here: "
_KEY_LENGTH = 32


def marked(data: bytes) -> bytes:
    """Append a comment line by which `is_marked` knows the data again; unchanged, said so, if no key can be kept."""
    key = _key()
    if key is None:
        log.warning(
            "this run is not marked as yours, as no cache folder can hold a key: other commands ask again for "
            "what runs code. Set SEEDTUNE_CACHE to a folder that only you can write"
        )
        return data
    return data + _MARK + _code(key, data) + b"\n"


def is_marked(data: bytes) -> bool:
    """Return whether these data are as `marked` returned them to this user, unchanged."""
    body, mark, code = data.rpartition(_MARK)
    key = _key() if mark else None
    return key is not None and hmac.compare_digest(code, _code(key, body) + b"\n")


def _code(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=16).hexdigest().encode()


def _key() -> bytes | None:
    """Return this user's key, made on first use in the cache folder; None if it cannot be kept.  It never leaves it."""
    folder = cache_folders.private_folder("keys")
    if folder is None:
        return None
    file = folder / "runs"
    try:
        if not _is_whole(file):
            _make_key(file)
        return file.read_bytes() if _is_whole(file) else None
    except OSError:
        return None


def _is_whole(file: Path) -> bool:
    return file.is_file() and file.stat().st_size == _KEY_LENGTH


def _make_key(file: Path) -> None:
    """Write a key, on the disk before it has its name; a torn one is replaced, another process's new one stays."""
    handle, new = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(secrets.token_bytes(_KEY_LENGTH))
            out.flush()
            disk.flush(out.fileno())
        if not _is_whole(file):
            file.unlink(missing_ok=True)
        try:
            os.link(new, file)
        except FileExistsError:
            pass
        except OSError:  # exFAT, SMB and some FUSE disks have no links
            os.rename(new, file)
    finally:
        Path(new).unlink(missing_ok=True)
