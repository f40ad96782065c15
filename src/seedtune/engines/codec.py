"""Encode what a Ray engine and its workers exchange as msgpack bytes; a decoded value has the requested type."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from seedtune.types import Decay, Term, Update

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Encode plain data, dataclasses (by name), named tuples (as lists) and paths, at any depth."""
    return msgspec.msgpack.encode(value, enc_hook=_plain)


def decode(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    """Decode the result of `encode`; ValueError if it is no value of type ``kind``."""
    return msgspec.msgpack.decode(raw, type=kind, dec_hook=lambda other, data: other(data))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else os.fspath(value)


class TermColumns(NamedTuple):
    """Terms in eight bytes each: one generation if all share it, and a count if the pairs are 0, 1, 2, …"""

    generations: int | list[int]
    pairs: int | list[int]
    weights: bytes

    @classmethod
    def of(cls, terms: Sequence[Term]) -> TermColumns:
        """Encode terms."""
        generations, pairs = [term.generation for term in terms], [term.pair for term in terms]
        return cls(
            generations[0] if len(set(generations)) == 1 else generations,
            len(pairs) if pairs == list(range(len(pairs))) else pairs,
            struct.pack(f"<{len(terms)}d", *(term.weight for term in terms)),
        )

    def terms(self) -> tuple[Term, ...]:
        """Decode the terms."""
        weights = struct.unpack(f"<{len(self.weights) // 8}d", self.weights)
        generations = [self.generations] * len(weights) if isinstance(self.generations, int) else self.generations
        pairs = range(self.pairs) if isinstance(self.pairs, int) else self.pairs
        return tuple(Term(*term) for term in zip(generations, pairs, weights, strict=True))


class CompactUpdate(NamedTuple):
    """An update with its terms as columns."""

    generation: int
    columns: TermColumns
    decay: Decay | None

    @classmethod
    def of(cls, update: Update) -> CompactUpdate:
        """Encode an update."""
        return cls(update.generation, TermColumns.of(update.terms), update.decay)

    def update(self) -> Update:
        """Decode the update."""
        return Update(self.generation, self.columns.terms(), self.decay)
