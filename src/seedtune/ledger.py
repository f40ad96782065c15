"""The ledger: an append-only file of seeds and coefficients that is the run; weights are a cache of it.

One JSON object a line.  The header names the base model and the configuration; a record per generation holds
members, rewards and coefficients as exact floats; every few generations a fingerprint of the centre.  Each
line ends with a checksum over itself and the line before, so a changed bit anywhere is found and named.
Lines are flushed to the disk before the update they describe is applied; a torn last line is dropped.
Nothing in it depends on time or place: the same run writes the same bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedtune.errors import LedgerError, RunError, StorageError
from seedtune.types import Member, Plan

FORMAT = 1
_CHECK = ',"check":"'
_CHECK_LENGTH = len(_CHECK) + 16 + 2


@dataclass(frozen=True, slots=True)
class Header:
    """What the run starts from: everything later is a function of it."""

    model: str
    base_fingerprint: str
    config: Mapping[str, Any]
    noise: str
    version: str
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return {"seedtune": self.version, **{k: getattr(self, k) for k in ("format", "noise", "model")},
                "base_fingerprint": self.base_fingerprint, "config": self.config}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Header:
        return cls(
            data["model"], data["base_fingerprint"], data["config"], data["noise"], data["seedtune"], data["format"]
        )


@dataclass(frozen=True, slots=True)
class Record:
    """One generation: enough to apply its update again, bit for bit."""

    plan: Plan
    rewards: tuple[float, ...]
    coefficients: tuple[float, ...]
    prompts: tuple[int, ...]
    centre_reward: float | None
    tokens: Mapping[str, int]
    state: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "generation": plan.generation,
            "sigma": plan.sigma,
            "alpha": plan.alpha,
            "members": [member.label(plan.generation) for member in plan.members],
            "rewards": [_null_nan(reward) for reward in self.rewards],
            "coefficients": list(self.coefficients),
            "prompts": list(self.prompts),
            "centre_reward": _null_nan(self.centre_reward),
            "tokens": dict(self.tokens),
            "state": dict(self.state),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        generation = data["generation"]
        members = tuple(Member.parse(label, generation) for label in data["members"])
        return cls(
            plan=Plan(generation, data["sigma"], data["alpha"], members),
            rewards=tuple(math.nan if reward is None else float(reward) for reward in data["rewards"]),
            coefficients=tuple(float(z) for z in data["coefficients"]),
            prompts=tuple(data["prompts"]),
            centre_reward=data["centre_reward"],
            tokens=data["tokens"],
            state=data["state"],
        )


def _null_nan(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


@dataclass(slots=True)
class Contents:
    """A ledger read back: header, records in order, and fingerprints by number of generations applied."""

    header: Header
    records: list[Record] = field(default_factory=list)
    fingerprints: dict[int, str] = field(default_factory=dict)
    check: str = ""
    size: int = 0
    torn: int = 0
    """Bytes of an unfinished last line, which are not part of the run."""

    @property
    def generations(self) -> int:
        """Generations recorded."""
        return len(self.records)


def read(path: Path) -> Contents:
    """Read and verify a ledger; LedgerError names the line that is not what was written."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path.parent} is not a run directory: it has no {path.name}. Check the path.") from None
    whole, _, tail = raw.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    if not lines:
        raise RunError(f"{path} has no complete header: the run stopped before it began. Delete {path.parent} and train.")
    data, check = _verify(path, 1, lines[0], "")
    contents = _header(path, data, check)
    for number, line in enumerate(lines[1:], start=2):
        data, contents.check = _verify(path, number, line, contents.check)
        _add(path, number, data, contents)
    contents.size, contents.torn = len(raw) - len(tail), len(tail)
    return contents


def _verify(path: Path, number: int, line: bytes, previous: str) -> tuple[dict[str, Any], str]:
    body, check = line[:-_CHECK_LENGTH], line[-_CHECK_LENGTH:].decode("ascii", "replace")
    expected = _checksum(previous, body)
    if check != f'{_CHECK}{expected}"}}':
        raise LedgerError(
            f"{path} line {number} is corrupted: its checksum does not match what it holds. Restore the file from a "
            f"copy, or keep only the first {number - 1} lines (head -n {number - 1}) to go on from there."
        )
    return json.loads(body + b"}"), expected


def _header(path: Path, data: dict[str, Any], check: str) -> Contents:
    if data.get("format") != FORMAT:
        raise LedgerError(f"{path} has ledger format {data.get('format')!r}; this version reads format {FORMAT}.")
    return Contents(Header.from_json(data), check=check)


def _add(path: Path, number: int, data: dict[str, Any], contents: Contents) -> None:
    if "fingerprint" in data:
        contents.fingerprints[data["after"]] = data["fingerprint"]
        return
    if data["generation"] != contents.generations:
        raise LedgerError(
            f"{path} line {number} records generation {data['generation']}, but {contents.generations} was expected."
        )
    contents.records.append(Record.from_json(data))


def _checksum(previous: str, body: bytes) -> str:
    return hashlib.blake2b(previous.encode() + body, digest_size=8).hexdigest()


class Ledger:
    """A ledger open for appending; one process at a time."""

    def __init__(self, path: Path, *, check: str = "", size: int = 0) -> None:
        """Use ``create`` or ``resume``."""
        self.path = path
        self._check, self._size = check, size
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise RunError(f"{path.parent} is being trained by another process. Wait for it, or stop it.") from None
        os.ftruncate(self._file, size)

    @classmethod
    def create(cls, path: Path, header: Header) -> Ledger:
        """Begin a ledger; RunError if there is one already."""
        if path.exists() and path.stat().st_size:
            raise RunError(
                f"{path.parent} already holds a run. Resume it with 'seedtune resume {path.parent}', or choose another "
                "output_dir."
            )
        ledger = cls(path)
        ledger._append(header.to_json())
        return ledger

    @classmethod
    def resume(cls, path: Path, contents: Contents) -> Ledger:
        """Go on after the last complete line."""
        return cls(path, check=contents.check, size=contents.size)

    def append(self, record: Record) -> None:
        """Write a generation and flush it to the disk; StorageError leaves the file as it was."""
        self._append(record.to_json())

    def append_fingerprint(self, after: int, fingerprint: str) -> None:
        """Note the centre's fingerprint after ``after`` generations."""
        self._append({"after": after, "fingerprint": fingerprint})

    def _append(self, data: Mapping[str, Any]) -> None:
        body = json.dumps(data, separators=(",", ":"), allow_nan=False)[:-1].encode()
        check = _checksum(self._check, body)
        line = body + f'{_CHECK}{check}"}}\n'.encode()
        try:
            _write_all(self._file, line, self._size)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise StorageError(storage_message(self.path, error)) from error
        self._check, self._size = check, self._size + len(line)

    def close(self) -> None:
        """Release the file and its lock."""
        os.close(self._file)


def _write_all(file: int, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], offset + written)
    os.fsync(file)


def storage_message(path: Path, error: OSError) -> str:
    """What went wrong while writing ``path``, that nothing is lost, and how to go on."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    cause = "the disk is full" if full else str(error)
    return (
        f"cannot write {path}: {cause}. Everything up to the last complete generation is safe. "
        f"{'Free some space' if full else 'Fix that'} and continue with: seedtune resume {path.parent}"
    )


def changed_fields(recorded: Mapping[str, Any], current: Mapping[str, Any], prefix: str = "") -> Sequence[str]:
    """``name: recorded → current`` for every setting that differs."""
    changes: list[str] = []
    for key in sorted(set(recorded) | set(current)):
        before, now = recorded.get(key), current.get(key)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            changes += changed_fields(before, now, f"{prefix}{key}.")
        elif before != now:
            changes.append(f"{prefix}{key}: {before!r} → {now!r}")
    return changes
