"""The ledger: an append-only file of seeds and coefficients that defines the run; weights are a cache of it.

One JSON object per line.  The header names the base model and the configuration; one record per generation holds
members, rewards and coefficients as exact floats; every few generations there is a fingerprint of the current weights.
Each line ends with a checksum over itself and the line before, so that any changed bit is found and located.
Lines are flushed to disk before the update they describe is applied; a torn last line is dropped.
Nothing in it depends on time or machine, except where the user's own data and code are: the same run writes the same
bytes.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from seedtune.config.foreign_data import GenerationCount, conform
from seedtune.errors import LedgerError, RunError, resume_command, storage_error
from seedtune.numerics.machine import disk
from seedtune.run.records import FORMAT, Header, Record
from seedtune.run.sealing import matching, seal, unseal
from seedtune.types import __version__

log = logging.getLogger("seedtune")


class _NoteLine(TypedDict):
    """A line between two generations, after this many of them."""

    after: GenerationCount
    fingerprint: NotRequired[str]
    arithmetic: NotRequired[dict[str, Any]]
    chosen: NotRequired[GenerationCount]


@dataclass(slots=True)
class Contents:
    """A ledger read from disk: header, records in order, and fingerprints by number of generations applied."""

    header: Header
    records: list[Record] = field(default_factory=list)
    fingerprints: dict[int, str] = field(default_factory=dict)
    changes: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    """Generation → how rewards are computed from it on, where this changed."""

    ends: dict[int, int] = field(default_factory=dict)
    """Number of generations at an end of the run → number of generations of the model chosen there."""

    check: str = ""
    size: int = 0
    torn: int = 0
    """Bytes of an incomplete last line, which is not part of the run."""

    @property
    def generations(self) -> int:
        """Number of recorded generations."""
        return len(self.records)

    @property
    def chosen(self) -> int:
        """Number of generations of the model to hand out: all, unless an end of the run chose an earlier one."""
        return self.ends.get(self.generations, self.generations)

    @property
    def arithmetics(self) -> dict[int, Mapping[str, Any]]:
        """First generation → how rewards are computed from it on."""
        return {0: self.header.arithmetic, **self.changes}

    def arithmetic(self, generation: int | None = None) -> Mapping[str, Any]:
        """Return how the rewards of a generation were computed; by default of the next one."""
        known = self.arithmetics
        return known[max(start for start in known if generation is None or start <= generation)]

    def add(self, data: Mapping[str, Any]) -> None:
        """Add a line: a note between two generations, or a generation.  Raises ValueError."""
        done = self.generations
        if "after" not in data:
            record = Record.from_json(data)
            if record.plan.generation != done:
                raise ValueError(f"it records generation {record.plan.generation}, but {done} was expected")
            self.records.append(record)
            return
        note = conform(data, _NoteLine)
        if note["after"] != done:
            what = ", ".join(name for name in note if name != "after")
            raise ValueError(f"the {what} after {note['after']} generations comes after {done}")
        if "fingerprint" in note:
            self.fingerprints[done] = note["fingerprint"]
        if "arithmetic" in note:
            self.changes[done] = note["arithmetic"]
        if note.get("chosen", 0) > done:
            raise ValueError(f"generation {note['chosen']} is chosen after {done}")
        if "chosen" in note:
            self.ends[done] = note["chosen"]


def read(path: Path) -> Contents:
    """Read and verify a ledger; LedgerError names the first line that is not as written, RunError if there is none."""
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RunError(f"{path.parent} is not a run directory: it has no {path.name}. Check the path.") from None
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {error}. Fix that and try again.") from error
    *lines, tail = raw.split(b"\n")
    contents, check = None, ""
    for number, line in enumerate(lines, start=1):
        found = unseal(line, check)
        if found is None:
            raise _corrupted(path, number)
        data, check = found
        contents = _with_line(path, number, data, contents)
    if matching(tail[:-1], check) is not None:  # a whole line of which only the newline was changed
        raise _corrupted(path, len(lines) + 1)
    if contents is None:
        raise RunError(
            f"{path} has no complete header: the run stopped before it began. "
            f"Begin it with: {resume_command(path.parent)}"
        )
    contents.check, contents.size, contents.torn = check, len(raw) - len(tail), len(tail)
    return contents


def _with_line(path: Path, number: int, data: dict[str, Any], contents: Contents | None) -> Contents:
    """Begin the contents with the header, or add a line to them."""
    if contents is None and data.get("format") != FORMAT:
        raise LedgerError(
            f"{path} has ledger format {data.get('format')!r}; this version reads format {FORMAT}. "
            "Use the version of seedtune that wrote it, or a newer one."
        )
    try:
        if contents is None:
            return Contents(Header.from_json(data))
        contents.add(data)
    except ValueError as error:
        raise LedgerError(
            f"{path} line {number} has a good checksum but is no line that seedtune {__version__} writes ({error}): it "
            "was edited and sealed again, or written by another version of seedtune. Restore the file from a copy, or "
            "use that version."
        ) from error
    return contents


def has_begun(path: Path) -> bool:
    """Return whether there is a ledger with a complete first line."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.readline().endswith(b"\n")


def _corrupted(path: Path, number: int) -> LedgerError:
    before = number - 1
    keep = f", or keep only the first {before} lines (head -n {before}) to go on from there" if before else ""
    return LedgerError(
        f"{path} line {number} is corrupted: its checksum does not match what it holds. "
        f"Restore the file from a copy{keep}."
    )


class Ledger:
    """A ledger open for appending, by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open and lock (use ``claimed`` or ``resume``); StorageError, or RunError if another process has locked it."""
        self.path = path
        self._check, self._size = "", 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise storage_error(path, error) from error
        try:
            if not disk.lock(self._file):
                log.warning("the disk of %s has no locks: let only one process at a time train there", path.parent)
            if not path.exists() or not os.path.samestat(os.fstat(self._file), path.stat()):
                raise BlockingIOError  # it was locked by a start that failed, and deleted
        except BlockingIOError:
            os.close(self._file)
            raise RunError(f"{path.parent} is being trained by another process. Wait for it, or stop it.") from None
        except OSError as error:
            os.close(self._file)
            raise storage_error(path, error) from error
        _OPEN.add(self)

    @classmethod
    @contextmanager
    def claimed(cls, path: Path) -> Iterator[Ledger]:
        """Lock the ledger of a run to come, which `begin` starts; without that it is deleted in the end.

        Raises RunError if there is a ledger already, or another process has locked it.
        """
        with closing(cls(path)) as ledger:
            if has_begun(path):
                raise RunError(
                    f"{path.parent} already holds a run. Resume it with '{resume_command(path.parent)}', or "
                    "choose another output_dir."
                )
            try:
                yield ledger
            finally:
                if not has_begun(path):
                    path.unlink(missing_ok=True)

    def begin(self, header: Header) -> None:
        """Write the first line; an incomplete one of an earlier start is overwritten."""
        os.ftruncate(self._file, 0)
        self._append(header.to_json())
        disk.flush_path(self.path.parent)

    @classmethod
    def resume(cls, path: Path) -> tuple[Ledger, Contents]:
        """Lock and read a ledger, and continue after its last complete line."""
        if not path.is_file():
            read(path)
        ledger = cls(path)
        try:
            contents = read(path)
            ledger._check, ledger._size = contents.check, contents.size
            os.ftruncate(ledger._file, contents.size)
        except BaseException:
            ledger.close()
            raise
        return ledger, contents

    def append(self, record: Record) -> None:
        """Write a generation and flush it to disk; on StorageError the file is unchanged."""
        self._append(record.to_json())

    def note(self, after: int, **line: Any) -> None:
        """Record the ``fingerprint``, a change of the ``arithmetic``, or at an end the ``chosen`` generation."""
        self._append({"after": after, **line})

    def _append(self, data: Mapping[str, Any]) -> None:
        line, check = seal(data, self._check)
        try:
            _write_all(self._file, line, self._size)
        except OSError as error:
            with suppress(OSError):  # a torn line is dropped by the next reader
                os.ftruncate(self._file, self._size)
            raise storage_error(self.path, error) from error
        self._check, self._size = check, self._size + len(line)

    def close(self) -> None:
        """Release the file and its lock."""
        if self in _OPEN:
            _OPEN.remove(self)
            os.close(self._file)


_OPEN: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close the ledgers in a forked process, which would keep their locks after the run's own process was killed."""
    for book in list(_OPEN):
        book.close()


os.register_at_fork(after_in_child=_close_in_child)


def _write_all(file: int, data: bytes, offset: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], offset + written)
    disk.flush(file)
