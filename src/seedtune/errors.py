"""Every error a user can cause.  Each message says the value, the limit and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SeedtuneError(Exception):
    """Base of all our errors; the command line prints its message as one line and exits with 1."""


class ConfigError(SeedtuneError):
    """A setting is missing, misspelt, of the wrong type or out of its range."""


class ModelError(SeedtuneError):
    """A model cannot be found, loaded or perturbed."""


class MissingExtraError(SeedtuneError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, install: str) -> None:
        super().__init__(f"{what} needs a package that is not installed. Install it with: {install}")


class DataError(SeedtuneError):
    """A data set is empty or malformed, or a prompt does not fit the model."""


class RewardError(SeedtuneError):
    """A reward function raised or returned something that is not a list of rewards."""


class RunError(SeedtuneError):
    """A run directory is used, missing or does not belong to this configuration."""


class LedgerError(SeedtuneError):
    """A ledger is corrupted or does not belong to this base model."""


class StorageError(SeedtuneError):
    """Writing to the run directory failed (disk full, no permission)."""


class TrainingInterrupted(SeedtuneError):
    """The user asked to stop; the run can be resumed."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known word nearest to ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
