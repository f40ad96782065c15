"""Select the trainable tensors: patterns over Hugging Face names, as in a shell (``*.embed_tokens.*``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from seedtune.errors import ConfigError, suggest


def select(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Return the ``names``, in their order, that match a pattern and none of the patterns that begin with ``!``.

    With patterns of the second kind only, all other names are chosen.

    Raises ConfigError for a pattern that matches nothing (a misspelt one would be ignored silently), and for a
    selection that leaves nothing to train.
    """
    known = list(names)
    matches = {pattern: {n for n in known if fnmatchcase(n, pattern.removeprefix("!"))} for pattern in patterns}
    for pattern in (pattern for pattern, found in matches.items() if not found):
        raise ConfigError(
            f"trainable: the pattern {pattern!r} matches none of the model's {len(known)} tensors."
            f"{suggest(pattern.removeprefix('!'), known)} Names look like {known[0]!r}; * stands for anything."
        )
    wanted = [found for pattern, found in matches.items() if not pattern.startswith("!")] or [set(known)]
    frozen = set().union(*(found for pattern, found in matches.items() if pattern.startswith("!")))
    selected = set().union(*wanted) - frozen
    chosen = [name for name in known if name in selected]
    if not chosen:
        raise ConfigError(f"trainable={list(patterns)} leaves no tensor to train.")
    return chosen
