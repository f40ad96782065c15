"""What travels to the workers: numbers, strings, lists and mappings, nothing else (tensors do not survive the way)."""

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
    """Each as [generation, pair, weight]."""
    return [[term.generation, term.pair, term.weight] for term in listed]


def terms_from(data: Plain) -> tuple[Term, ...]:
    """The other way round."""
    return tuple(Term(generation, pair, weight) for generation, pair, weight in data)


def update(one: Update) -> Plain:
    """An update with its decay."""
    return {
        "generation": one.generation,
        "terms": terms(one.terms),
        "decay": None if one.decay is None else [one.decay.l2, one.decay.l1],
    }


def update_from(data: Plain) -> Update:
    """The other way round."""
    decay = data["decay"]
    return Update(data["generation"], terms_from(data["terms"]), None if decay is None else Decay(*decay))


def shift(one: Shift) -> Plain:
    """[terms, length]."""
    return [terms(one.terms), one.length]


def shift_from(data: Plain) -> Shift:
    """The other way round."""
    return Shift(terms_from(data[0]), data[1])


def noise(one: Noise) -> Plain:
    """Every field by name."""
    return asdict(one) | {"trainable": list(one.trainable), "freeze": list(one.freeze)}


def noise_from(data: Plain) -> Noise:
    """The other way round."""
    return Noise(**{**data, "trainable": tuple(data["trainable"]), "freeze": tuple(data["freeze"])})


def place(stored: Stored) -> Plain:
    """[path, type, shape, offset]."""
    return [str(stored.path), stored.dtype, list(stored.shape), stored.offset]


def place_from(data: Plain) -> Stored:
    """The other way round."""
    return Stored(Path(data[0]), data[1], tuple(data[2]), data[3])
