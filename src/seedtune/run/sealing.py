"""JSON lines sealed by a checksum over themselves and the previous line, and files marked with the user's own key."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from seedtune.config.foreign_data import parse_json
from seedtune.numerics.machine import cache_folders

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
    """Append a comment line by which `is_marked` knows the data again; unchanged if no key can be kept."""
    key = _key()
    return data if key is None else data + _MARK + _code(key, data) + b"\n"


def is_marked(data: bytes) -> bool:
    """Return whether `marked` of this user wrote these data, and nobody changed them."""
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
    with suppress(OSError):
        file = folder / "runs"
        if not file.exists():
            with tempfile.NamedTemporaryFile(dir=folder) as new, suppress(FileExistsError):
                new.write(secrets.token_bytes(_KEY_LENGTH))
                new.flush()
                os.link(new.name, file)
        key = file.read_bytes()
        return key if len(key) == _KEY_LENGTH else None
    return None
