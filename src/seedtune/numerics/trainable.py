"""Select the trainable tensors: patterns over Hugging Face names, as in a shell (``*.embed_tokens.*``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from seedtune.errors import ConfigError, nearest


def select(names: Iterable[str], trainable: Sequence[str], freeze: Sequence[str]) -> list[str]:
    """Return the ``names``, in their order, that match a pattern of ``trainable`` and none of ``freeze``.

    Raises ConfigError for a pattern that matches nothing (a misspelt one would be ignored silently), and for a
    selection that leaves nothing to train.
    """
    known = list(names)
    for setting, patterns in (("trainable", trainable), ("freeze", freeze)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(
                    f"{setting}: the pattern {pattern!r} matches none of the model's {len(known)} tensors."
                    f"{nearest(pattern, known)} Names look like {known[0]!r}; * stands for anything."
                )
    chosen = [n for n in known if _any(n, trainable) and not _any(n, freeze)]
    if not chosen:
        raise ConfigError(f"trainable={list(trainable)} without freeze={list(freeze)} leaves no tensor to train.")
    return chosen


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
