"""Encode messages to workers as numbers, strings, lists and mappings only (tensors do not survive the transport)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seedtune.numerics.noise import Noise
from seedtune.numerics.tensor_file import Stored
from seedtune.types import Decay, Shift, Term, Update

Plain = Any
"""Numbers, strings, None, and lists and mappings of these."""


def terms(listed: Sequence[Term]) -> Plain:
    """Encode each term as [generation, pair, weight]."""
    return [[term.generation, term.pair, term.weight] for term in listed]


def terms_from(data: Plain) -> tuple[Term, ...]:
    """Decode the result of `terms`."""
    return tuple(Term(generation, pair, weight) for generation, pair, weight in data)


def update(one: Update) -> Plain:
    """Encode an update with its decay."""
    return {
        "generation": one.generation,
        "terms": terms(one.terms),
        "decay": None if one.decay is None else [one.decay.l2, one.decay.l1],
    }


def update_from(data: Plain) -> Update:
    """Decode the result of `update`."""
    decay = data["decay"]
    return Update(data["generation"], terms_from(data["terms"]), None if decay is None else Decay(*decay))


def shift(one: Shift) -> Plain:
    """Encode a shift as [terms, length]."""
    return [terms(one.terms), one.length]


def shift_from(data: Plain) -> Shift:
    """Decode the result of `shift`."""
    return Shift(terms_from(data[0]), data[1])


def noise(one: Noise) -> Plain:
    """Encode every field by name."""
    return asdict(one) | {"trainable": list(one.trainable), "freeze": list(one.freeze)}


def noise_from(data: Plain) -> Noise:
    """Decode the result of `noise`."""
    return Noise(**{**data, "trainable": tuple(data["trainable"]), "freeze": tuple(data["freeze"])})


def place(stored: Stored) -> Plain:
    """Encode the location of a stored tensor as [path, type, shape, offset]."""
    return [str(stored.path), stored.dtype, list(stored.shape), stored.offset]


def place_from(data: Plain) -> Stored:
    """Decode the result of `place`."""
    return Stored(Path(data[0]), data[1], tuple(data[2]), data[3])
