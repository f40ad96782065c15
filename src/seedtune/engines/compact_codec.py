"""Compact encoding of updates: eight bytes for a weight, none for noise samples that are in order."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from seedtune.engines.codec import Plain
from seedtune.types import Decay, Shift, Term, Update


def terms(listed: Sequence[Term]) -> Plain:
    """Encode as [generations, pairs, weights]: one generation if all terms share it, a count if pairs are 0, 1, 2, …"""
    generations, pairs = [term.generation for term in listed], [term.pair for term in listed]
    return [
        generations[0] if len(set(generations)) == 1 else generations,
        len(pairs) if pairs == list(range(len(pairs))) else pairs,
        struct.pack(f"<{len(listed)}d", *(term.weight for term in listed)),
    ]


def terms_from(data: Plain) -> tuple[Term, ...]:
    """Decode the result of `terms`."""
    generations, pairs, raw = data
    weights = struct.unpack(f"<{len(raw) // 8}d", raw)
    if isinstance(generations, int):
        generations = [generations] * len(weights)
    if isinstance(pairs, int):
        pairs = range(pairs)
    return tuple(Term(*term) for term in zip(generations, pairs, weights, strict=True))


def update(one: Update) -> Plain:
    """Encode an update as [generation, terms, decay]."""
    decay = one.decay
    return [one.generation, terms(one.terms), None if decay is None else [decay.l2, decay.l1]]


def update_from(data: Plain) -> Update:
    """Decode the result of `update`."""
    generation, listed, decay = data
    return Update(generation, terms_from(listed), None if decay is None else Decay(*decay))


def shift(one: Shift | None) -> Plain:
    """Encode a shift as [terms, length]."""
    return None if one is None else [terms(one.terms), one.length]


def shift_from(data: Plain) -> Shift | None:
    """Decode the result of `shift`."""
    return None if data is None else Shift(terms_from(data[0]), data[1])
