"""JSON lines sealed by a checksum over themselves and the previous line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

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
        return json.loads(line[:-_CHECK_LENGTH] + b"}"), check
    except ValueError:
        return None


def matching(line: bytes, previous: str) -> str | None:
    """Return the checksum of a line, or None if the line does not end with it."""
    expected = _checksum(previous, line[:-_CHECK_LENGTH])
    return expected if line[-_CHECK_LENGTH:] == f'{_CHECK}{expected}"}}'.encode() else None


def _checksum(previous: str, body: bytes) -> str:
    return hashlib.blake2b(previous.encode() + body, digest_size=8).hexdigest()
