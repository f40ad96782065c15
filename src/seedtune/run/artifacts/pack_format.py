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
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
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

TERMS, SIZE = 20_000_000, 120_000_000
"""Most generations and terms of a pack, and most bytes of its file: reading both takes a gigabyte of memory."""

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
        """Rank and subspaces, which scale a term's weight, see `seedtune.numerics.noise.amplitude`.

        Raises ValueError if one is below 1.
        """
        rank = self.config["rank"] if self.config["perturbation"] == "lowrank" else 1
        shape = {"rank": rank, "subspaces": self.config.get("subspaces", 1)}
        if min(shape.values()) < 1:
            raise ValueError(f"noise of {shape}")
        return shape


@dataclass(frozen=True, slots=True)
class Pack:
    """A fine-tune: its starting point, and one update per generation."""

    about: About
    updates: Sequence[Update]


def dump(pack: Pack) -> bytes:
    """Encode a pack as the bytes of its file; PackError if it has more than can be read."""
    terms, columns = sum(len(update.terms) for update in pack.updates), _encode(pack.updates, pack.about.shape)
    count = len(pack.updates) + terms
    body = zlib.compress(columns, 9)
    if count > _most(body):
        body = zlib.compress(columns, 0)
    if count > _most(body) or len(body) > SIZE - 1_000_000:
        raise PackError(
            f"{len(pack.updates):,} generations with {terms:,} terms of noise in all are more than a pack holds, "
            f"{TERMS:,} and {SIZE:,} bytes. Pack fewer generations, or export the model."
        )
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
        if len(raw) > size or hashlib.blake2b(memoryview(raw)[:-DIGEST], digest_size=DIGEST).digest() != raw[-DIGEST:]:
            raise _edited(name, "it")
        about = conform(header, About)
        if str(about.generations) not in about.fingerprints or not all(map(_is_count, about.fingerprints)):
            raise ValueError(f"no fingerprint after {about.generations} generations")
        return Pack(about, _decode(memoryview(rest)[:-DIGEST], about, sizes["terms"]))
    except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
        raise PackError(
            f"{name} has good checksums but does not hold what a pack holds ({error}): it was not written by "
            "'seedtune pack'. Get another copy."
        ) from error


class _Sizes(TypedDict):
    """Sizes of the file, as its header states them."""

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


def _most(body: bytes | memoryview) -> int:
    """Return the most generations and terms that a pack with these compressed columns may have."""
    return min(TERMS, DENSITY * len(body) + 1000)


def _decode(body: memoryview, about: About, terms: int) -> Sequence[Update]:
    """Decode updates from compressed columns, decompressing no more than the header's counts allow."""
    count = about.generations
    if count + terms > _most(body):
        raise ValueError(f"{count} generations of {terms} terms in all, in {len(body)} bytes")
    sizes = (8 * count, 8 * terms, 8 * terms, 4 * terms, count, 8 * count)
    columns = zlib.decompressobj().decompress(body, sum(sizes) + 1)
    if len(columns) != sum(sizes):
        raise ValueError(f"{len(columns)} bytes of columns, not {sum(sizes)}")
    view = memoryview(columns)
    pieces = [view[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    lengths, ages, pairs = (np.frombuffer(piece, "<i8") for piece in pieces[:3])
    weights = np.frombuffer(pieces[3], np.uint8).reshape(4, -1).T.copy().view("<f4").reshape(-1)
    pulls = np.frombuffer(pieces[5], "<f4").reshape(-1, 2)
    if not (np.isfinite(weights).all() and np.isfinite(pulls).all()):
        raise ValueError("a weight is infinite or no number")
    if ((lengths < 0) | (lengths > terms)).any() or lengths.sum() != terms:
        raise ValueError("the numbers of terms do not add up")
    sources = np.repeat(np.arange(count), lengths)
    np.subtract(sources, ages, out=sources)
    wrong = (sources < 0) | (sources >= _LIMIT) | (pairs < 0) | (pairs >= _LIMIT)
    if wrong.any():
        raise ValueError(f"noise of generation {sources[wrong.argmax()]}, pair {pairs[wrong.argmax()]}")
    scale = amplitude(1.0, **about.shape)
    return _Updates(np.cumsum(lengths), sources, pairs, weights, pieces[4], pulls, scale)


@dataclass(frozen=True, slots=True)
class _Updates(Sequence[Update]):
    """Updates made from their columns when they are asked for: a term takes 40 bytes, not 200."""

    ends: NDArray[np.int64]
    sources: NDArray[np.int64]
    """Generation of each term's noise."""

    pairs: NDArray[np.int64]
    weights: NDArray[np.float32]
    decays: memoryview
    pulls: NDArray[np.float32]
    scale: float

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        generation = range(len(self))[index]
        own = slice(self.ends[generation - 1] if generation else 0, self.ends[generation])
        weights = self.weights[own].astype(np.float64) / self.scale
        terms = map(Term, self.sources[own].tolist(), self.pairs[own].tolist(), weights.tolist())
        decay = Decay(*self.pulls[generation].tolist()) if self.decays[generation] else None
        return Update(generation, tuple(terms), decay)
