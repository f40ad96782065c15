"""The pack format: a fine-tune as one small file that rebuilds it from its base model, bit for bit.

    line of JSON, sealed with its own checksum · compressed columns · BLAKE2b-256 of everything before

The columns follow one another, little endian, compressed by zlib: terms of each update (int64), age of each term's
noise, which is the update's generation minus the noise's (int64), its pair (int64), the four bytes of each term's
weight, byte by byte (float32); whether each update decays (uint8), and its l2 and l1 (float32).

A weight is stored as the float32 used by the kernels: w√K for gaussian noise in K subspaces, w√K/√r for rank r.  It is
read back times √r/√K in float64, from which the kernels compute the same float32 again: a relative error of 2⁻⁵¹ does
not change the rounding to float32.  Ids that follow a pattern compress to almost nothing.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from seedtune.config.foreign_data import Count, GenerationCount, conform
from seedtune.errors import PackError
from seedtune.numerics.noise import amplitude
from seedtune.run.sealing import seal, unseal
from seedtune.types import Decay, Term, Update

FORMAT = 1
MAGIC = b'{"seedtune_pack":'
DIGEST = 32
_LIMIT = 1 << 32
"""Generations and pairs are 32-bit words of a noise address."""

TERMS, SIZE = 3_000_000, 100_000_000
"""Most generations and terms of a pack, which take half a gigabyte in memory, and most bytes of its file."""

DENSITY = 32
"""Most terms in a compressed byte: weights are rewards of members, of which no more fit into one."""


@dataclass(frozen=True, slots=True)
class About:
    """The first line of a pack: its base model, its result and its licences."""

    seedtune: str
    noise: str
    model: str
    base_fingerprint: str
    resolved_weights_dtype: str
    config: Mapping[str, Any]
    """The settings that the weights depend on, and those for the model card."""

    generations: GenerationCount
    fingerprints: Mapping[str, str]
    """Number of generations applied → fingerprint of the weights; the last one is that of the fine-tune."""

    base_licence: str | None = None
    licence: str | None = None
    note: str | None = None

    @property
    def shape(self) -> dict[str, int]:
        """Rank and subspaces, which scale a term's weight, see `seedtune.numerics.noise.amplitude`."""
        rank = self.config["rank"] if self.config["perturbation"] == "lowrank" else 1
        shape = {"rank": rank, "subspaces": self.config.get("subspaces", 1)}
        if min(shape.values()) < 1:
            raise ValueError(f"noise of {shape}")
        return shape


@dataclass(frozen=True, slots=True)
class Pack:
    """A fine-tune: its starting point, and one update per generation."""

    about: About
    updates: tuple[Update, ...]


def dump(pack: Pack) -> bytes:
    """Encode a pack as the bytes of its file."""
    body = zlib.compress(_encode(pack.updates, pack.about.shape), 9)
    terms = sum(len(update.terms) for update in pack.updates)
    line, _ = seal({"seedtune_pack": FORMAT, **asdict(pack.about), "terms": terms, "bytes": len(body)})
    return line + body + hashlib.blake2b(line + body, digest_size=DIGEST).digest()


def read(path: Path) -> Pack:
    """Read and check a pack; PackError says what is wrong with it."""
    try:
        if path.stat().st_size > SIZE:
            raise PackError(f"{path} has more than {SIZE:,} bytes, which no pack has. Check the path.")
        raw = path.read_bytes()
    except OSError as error:
        raise PackError(f"cannot read {path}: {error.strerror}. Check the path.") from error
    return parse(raw, str(path))


def parse(raw: bytes, name: str) -> Pack:
    """Decode a pack; PackError if it is not a pack, truncated, edited, or of a newer format."""
    line, newline, rest = raw.partition(b"\n")
    if MAGIC.startswith(raw) or (line.startswith(MAGIC) and not newline):
        raise _truncated(name, f"it ends within its header, after {len(raw)} bytes")
    if not line.startswith(MAGIC):
        raise PackError(f"{name} is not a pack. Give a file that 'seedtune pack' wrote.")
    found = unseal(line)
    if found is None:
        raise _edited(name, "its header")
    header, _ = found
    if header["seedtune_pack"] != FORMAT:
        raise PackError(
            f"{name} has pack format {header['seedtune_pack']!r}, made by seedtune {header.get('seedtune')}; this "
            f"version reads format {FORMAT}. Use that version, or a newer one."
        )
    try:
        json.dumps(header, ensure_ascii=False).encode()  # a lone surrogate is no text that a model card could hold
        sizes = conform(header, _Sizes)
        size = len(raw) - len(rest) + sizes["bytes"] + DIGEST
        if len(raw) < size:
            raise _truncated(name, f"it has {len(raw)} of {size} bytes")
        if len(raw) > size or hashlib.blake2b(raw[:-DIGEST], digest_size=DIGEST).digest() != raw[-DIGEST:]:
            raise _edited(name, "it")
        about = conform(header, About)
        if str(about.generations) not in about.fingerprints or not all(map(_is_count, about.fingerprints)):
            raise ValueError(f"no fingerprint after {about.generations} generations")
        return Pack(about, _decode(rest[:-DIGEST], about, sizes["terms"]))
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise PackError(
            f"{name} has good checksums but does not hold what a pack holds ({error}): it was not written by "
            "'seedtune pack'. Get another copy."
        ) from error


class _Sizes(TypedDict):
    """What the header says of the file itself."""

    terms: Count
    bytes: Count


def _is_count(text: str) -> bool:
    return text.isdecimal() and text.isascii() and len(text) < 10


def _truncated(name: str, reason: str) -> PackError:
    return PackError(f"{name} is truncated: {reason}. Copy it again.")


def _edited(name: str, what: str) -> PackError:
    return PackError(f"{name} was changed after it was written: the checksum of {what} is another. Get another copy.")


def _encode(updates: Sequence[Update], shape: Mapping[str, int]) -> bytes:
    terms = [(update.generation - term.generation, term) for update in updates for term in update.terms]
    decays = [update.decay or Decay() for update in updates]
    with np.errstate(over="ignore"):
        weights = np.array([amplitude(term.weight, **shape) for _, term in terms], "<f4")
    if not np.isfinite(weights).all():
        raise PackError("an update's weight is beyond float32: no model has it. The ledger was edited; restore it.")
    columns = (
        np.array([len(update.terms) for update in updates], "<i8"),
        np.array([age for age, _ in terms], "<i8"),
        np.array([term.pair for _, term in terms], "<i8"),
        weights.view(np.uint8).reshape(-1, 4).T,
        np.array([update.decay is not None for update in updates], np.uint8),
        np.array([(decay.l2, decay.l1) for decay in decays], "<f4"),
    )
    return b"".join(column.tobytes() for column in columns)


def _decode(body: bytes, about: About, terms: int) -> tuple[Update, ...]:
    """Decode updates from compressed columns, decompressing no more than the header's counts allow."""
    count = about.generations
    if count + terms > min(TERMS, DENSITY * len(body) + 1000):
        raise ValueError(f"{count} generations of {terms} terms in all, in {len(body)} bytes")
    sizes = (8 * count, 8 * terms, 8 * terms, 4 * terms, count, 8 * count)
    columns = zlib.decompressobj().decompress(body, sum(sizes) + 1)
    if len(columns) != sum(sizes):
        raise ValueError(f"{len(columns)} bytes of columns, not {sum(sizes)}")
    pieces = [columns[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    lengths, ages, pairs = (np.frombuffer(piece, "<i8").tolist() for piece in pieces[:3])
    weights = np.frombuffer(pieces[3], np.uint8).reshape(4, -1).T.copy().view("<f4").reshape(-1)
    if not (np.isfinite(weights).all() and np.isfinite(np.frombuffer(pieces[5], "<f4")).all()):
        raise ValueError("a weight is infinite or no number")
    kept = (weights.astype(np.float64) / amplitude(1.0, **about.shape)).tolist()
    pulls = np.frombuffer(pieces[5], "<f4").reshape(-1, 2).tolist()
    if sum(lengths) != terms or any(length < 0 for length in lengths):
        raise ValueError("the numbers of terms do not add up")
    rows = zip(ages, pairs, kept, strict=True)
    return tuple(
        Update(
            generation,
            tuple(_term(generation, *row) for row in islice(rows, length)),
            Decay(*pull) if flag else None,
        )
        for generation, (length, flag, pull) in enumerate(zip(lengths, pieces[4], pulls, strict=True))
    )


def _term(generation: int, age: int, pair: int, weight: float) -> Term:
    if not (0 <= generation - age < _LIMIT and 0 <= pair < _LIMIT):
        raise ValueError(f"noise of generation {generation - age}, pair {pair}")
    return Term(generation - age, pair, weight)
