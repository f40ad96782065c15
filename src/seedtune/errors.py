"""Every error a user can cause.  Each message says the value, the limit and the fix."""

from __future__ import annotations

import difflib
import errno
import re
import shlex
from collections.abc import Iterable
from pathlib import Path


class SeedtuneError(Exception):
    """Base of all our errors; the command line prints its message as one line and exits with 1."""


class ConfigError(SeedtuneError):
    """A setting is missing, misspelt, of the wrong type or out of its range."""


class ProductsError(ConfigError):
    """A kind of matrix products that cannot be had here."""


class ModelError(SeedtuneError):
    """A model cannot be found, loaded or perturbed."""


class MissingExtraError(SeedtuneError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(f"{what} needs a package that is not installed. Install it with: {install}")


class EngineError(SeedtuneError):
    """An engine's process died, or something in it failed; the current weights can be rebuilt from the ledger."""


class DataError(SeedtuneError):
    """A data set is empty or malformed, or a prompt does not fit the model."""


class RewardError(SeedtuneError):
    """A reward function raised or returned something that is not a list of rewards."""


class RunError(SeedtuneError):
    """A run directory is used, missing or does not belong to this configuration."""


class LedgerError(SeedtuneError):
    """A ledger is corrupted or does not belong to this base model."""


class PackError(SeedtuneError):
    """A packed fine-tune is damaged, too new, or of another base model."""


class StorageError(SeedtuneError):
    """Writing to the run directory failed (disk full, no permission)."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known word nearest to ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries in Rust (safetensors) spell an errno."""


def storage_error(path: Path, error: Exception, *, run: Path | None = None) -> StorageError:
    """What went wrong while writing ``path`` of a ``run`` (its folder by default), and how to go on."""
    cause, fix = storage_cause(error)
    return StorageError(
        f"cannot write {path}: {cause}. Everything up to the last complete generation is safe. "
        f"{fix} and continue with: {resume_command(run or path.parent)}"
    )


def storage_cause(error: Exception) -> tuple[str, str]:
    """(what went wrong, what to do) for an error of the operating system, whoever reports it."""
    spelt = _OS_ERROR.search(str(error))
    number = error.errno if isinstance(error, OSError) else int(spelt[1]) if spelt else None
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full", "Free some space"
    return str(error), "Fix that"


def resume_command(run: Path) -> str:
    """The command that goes on with a run, quoted for a shell."""
    return f"seedtune resume {shlex.quote(str(run))}"
