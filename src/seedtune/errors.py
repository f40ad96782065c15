"""Errors that a user can cause.  Each message states the value, the limit and the fix."""

from __future__ import annotations

import difflib
import errno
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LONGEST = 20_000
"""Most characters of an error: what it quotes may be a whole file."""


class SeedtuneError(Exception):
    """Base class of seedtune's errors; the command line prints the message on one line and exits with 1."""

    def __str__(self) -> str:
        text = super().__str__()
        return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text):,} characters)"


class ConfigError(SeedtuneError):
    """A setting is missing, misspelt, of the wrong type or out of range."""


class ProductsError(ConfigError):
    """The requested kind of matrix products is not available on this machine."""


class ModelError(SeedtuneError):
    """A model cannot be found, loaded or perturbed."""


class MissingExtraError(SeedtuneError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(f"{what} needs a package that is not installed. Install it with: {install}")
        self._arguments = what, install

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Make it again from its own arguments, in another process."""
        return type(self), self._arguments


class EngineError(SeedtuneError):
    """An engine failed or its process died; the current weights can be rebuilt from the ledger."""


class DataError(SeedtuneError):
    """A data set is empty or malformed, or a prompt does not fit the model."""


class RewardError(SeedtuneError):
    """A reward function raised, or returned something other than a list of rewards."""


class RunError(SeedtuneError):
    """A run directory is in use, missing, or does not belong to this configuration."""


class LedgerError(SeedtuneError):
    """A ledger is corrupted or does not belong to this base model."""


class PackError(SeedtuneError):
    """A packed fine-tune is damaged, has too new a format, or belongs to another base model."""


class HubError(SeedtuneError):
    """The Hugging Face hub cannot be reached, or refuses a repository."""


class StorageError(SeedtuneError):
    """Writing to the run directory failed (disk full, no permission)."""


def several(name: str, value: Any) -> list[Any]:
    """Return the members of a list or array that a Python program passed as ``name``; ConfigError for another value."""
    if not isinstance(value, Iterable):
        raise ConfigError(f"{name} is a {type(value).__name__}, not a list. Put it into one: {name}=[…].")
    return list(value)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that is not empty, or the name of its type."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def suggest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` with the known word nearest to ``word``, or an empty string."""
    if len(word) > 200:
        return ""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.65)
    return f" Did you mean {close[0]!r}?" if close else ""


_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust libraries (safetensors) write an errno."""


def storage_error(path: Path, error: Exception, *, run: Path | None = None) -> StorageError:
    """Return the error for a failed write of ``path`` in ``run`` (by default its folder), with the resume command."""
    cause, fix = storage_cause(error)
    return StorageError(
        f"cannot write {path}: {cause}. Everything up to the last complete generation is safe. "
        f"{fix} and continue with: {resume_command(run or path.parent)}"
    )


def storage_cause(error: Exception) -> tuple[str, str]:
    """Return (what went wrong, what to do) for an operating system error, raised by Python or a Rust library."""
    spelt = _OS_ERROR.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(spelt[1]) if spelt else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full", "Free some space"
    return str(error), "Fix that"


def resume_command(run: Path) -> str:
    """Return the command that resumes a run, quoted for a shell."""
    return f"seedtune resume {shlex.quote(str(run))}"
