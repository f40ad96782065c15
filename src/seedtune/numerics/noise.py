"""Noise scheme ``v1``: the exact numpy reference of every random number seedtune draws.

Noise is a pure function of an address: ``noise(run seed, generation, pair, tensor name, element)`` has the
same bits on every device, in any order and for any slice, because nothing ever walks a generator. This module
is the definition; the compiled kernels are tested against it bit for bit. Once released, a scheme never
changes: a change is a new scheme tag.

The scheme, with ``e`` the linear element index in the tensor's row-major Hugging Face layout:

* key ``(k0, k1)``: BLAKE2b (8 bytes, little endian) of scheme tag, run seed and tensor name, see `key`;
* counter words ``(block mod 2**32, stream * 2**24 + block // 2**32, pair, generation)`` with
  ``block = e // 8``;
* Philox4x32 with 10 rounds (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011)
  gives four 32-bit words;
* element lane ``e % 8 = 2 w`` takes the low 16 bits of word ``w``, lane ``2 w + 1`` its high 16 bits;
* the 16-bit code indexes a table of 65,536 float32 normal quantiles with unit variance, see `quantiles`.

Subspaces (CoPES, arXiv 2608.02391): each generation divides the elements of a tensor into K disjoint subspaces, see
`subspaces_of`, and pair p perturbs only the elements of subspace p mod K, with noise of standard deviation sqrt(K). For
low-rank noise the rows of A are divided. So the noise of a pair is

* gaussian: ``sqrt(K) * mask * noise``, element by element;
* low rank: ``sqrt(K) * (mask * A) B^T / sqrt(rank)``, the mask over rows.

Flipout (arXiv 2606.02857): pairs share normals U and differ in the signs of U's rows and columns, see `flipout`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEME = "v1"
TABLE_SHA256 = "8babbcaf96568f10165a1eab530c0e5c92d04de96761b6dbb3dadfa94baba37f"

CODES = 1 << 16
LANES = 8
WORD_LIMIT = 1 << 32
BLOCK_LIMIT = 1 << 56
ELEMENT_LIMIT = BLOCK_LIMIT * LANES
SEED_LIMIT = 1 << 64
SUBSPACE_LIMIT = (1 << 16) - 1

PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85
PHILOX_ROUNDS = 10

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


class Stream(IntEnum):
    """The purpose of a draw. Streams of one tensor are independent. Values 0 to 255, never changed."""

    GAUSSIAN = 0
    FACTOR_A = 1
    FACTOR_B = 2
    ROUNDING = 3
    SUBSPACE = 4
    SAMPLING = 5
    ORDER = 6
    SHARED = 7


class Purpose(StrEnum):
    """Purposes of random numbers besides weights.  The values are hashed into keys, fixed for ever."""

    PROMPT_ORDER = "prompt order"
    SAMPLING = "sampling"
    TASK = "task"
    HELD_OUT = "held-out rows"
    BOOTSTRAP = "bootstrap"
    TOY_MODEL = "toy"


GAUSSIAN, FACTOR_A, FACTOR_B, ROUNDING, SUBSPACE, SAMPLING, ORDER, SHARED = Stream


@dataclass(frozen=True)
class Address:
    """The address of a run of noise: tensor ``key`` (see `key`), `Stream`, ``generation`` and ``pair``.

    Raises ValueError when a key word, the generation or the pair is outside [0, 2**32), or the stream outside
    [0, 256).
    """

    key: tuple[int, int]
    stream: int = GAUSSIAN
    generation: int = 0
    pair: int = 0

    def __post_init__(self) -> None:
        _check("key word 0", self.key[0], WORD_LIMIT)
        _check("key word 1", self.key[1], WORD_LIMIT)
        _check("stream", self.stream, 256)
        _check("generation", self.generation, WORD_LIMIT)
        _check("pair", self.pair, WORD_LIMIT)


def key_for(seed: int, purpose: Purpose, name: str = "") -> tuple[int, int]:
    """Philox key of what is drawn for a purpose, as `key` of "purpose name"."""
    return key(seed, f"{purpose} {name}" if name else purpose)


def key(run_seed: int, name: str) -> tuple[int, int]:
    """Return the Philox key of one tensor in one run: the BLAKE2b-64 of scheme tag, run seed and name.

    Hashed bytes: "seedtune-noise-v1", a zero byte, the run seed (8 bytes, little endian), the tensor's
    Hugging Face ``name`` (UTF-8). The digest is two little-endian words. Returns two integers in [0, 2**32).
    Raises ValueError when ``run_seed`` is outside [0, 2**64).
    """
    _check("run seed", run_seed, SEED_LIMIT)
    text = f"seedtune-noise-{SCHEME}\0".encode() + int(run_seed).to_bytes(8, "little") + name.encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@lru_cache(maxsize=1)
def quantiles() -> NDArray[np.float32]:
    """Return the read-only table ``q[i] = Phi^-1((i + 1/2) / 65536)``, float32 [65536], scaled to unit variance.

    Computed and divided by its own standard deviation in float64, then rounded once. Raises RuntimeError when
    this platform's math library gives other bits than the scheme's (SHA-256 of the little-endian bytes),
    because all weights made from them would differ.
    """
    exact = np.array([NormalDist().inv_cdf((i + 0.5) / CODES) for i in range(CODES)])
    table = (exact / exact.std()).astype(np.float32)
    found = hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
    if found != TABLE_SHA256:
        raise RuntimeError(
            f"the table of normal quantiles has SHA-256 {found}, noise scheme {SCHEME} needs "
            f"{TABLE_SHA256}: this platform's math library rounds differently, so runs made here could not "
            "be replayed elsewhere; use another Python build"
        )
    table.flags.writeable = False
    return table


@lru_cache(maxsize=1)
def sign_table() -> NDArray[np.float32]:
    """Return the read-only table of the quantiles' signs, float32 [65536]: -1 in its lower half, 1 in its upper."""
    table = np.copysign(np.float32(1), quantiles())
    table.flags.writeable = False
    return table


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Run Philox4x32 with 10 rounds: counter words uint32 [..., 4] under one key -> words uint32 [..., 4]."""
    c0, c1, c2, c3 = (counter[..., w].astype(np.uint64) for w in range(4))
    for step in range(PHILOX_ROUNDS):
        k0 = np.uint64((key[0] + step * PHILOX_W0) % WORD_LIMIT)
        k1 = np.uint64((key[1] + step * PHILOX_W1) % WORD_LIMIT)
        product0, product1 = c0 * np.uint64(PHILOX_M0), c2 * np.uint64(PHILOX_M1)
        c0, c1 = (product1 >> _HALF) ^ c1 ^ k0, product1 & _LOW
        c2, c3 = (product0 >> _HALF) ^ c3 ^ k1, product0 & _LOW
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def philox_words(address: Address, block_start: int, count: int) -> NDArray[np.uint32]:
    """Return the Philox words of blocks ``block_start .. block_start + count - 1``: uint32 [count, 4].

    Raises ValueError when a block is outside [0, 2**56).
    """
    _check_range("block", block_start, count, BLOCK_LIMIT)
    return _words_of(address, np.arange(block_start, block_start + count, dtype=np.uint64))


def codes(address: Address, start: int, count: int) -> NDArray[np.uint16]:
    """Return the 16-bit codes of elements ``start .. start + count - 1``: uint16 [count], uniform on 0..65535.

    Raises ValueError when an element is outside [0, 2**59).
    """
    _check_range("element", start, count, ELEMENT_LIMIT)
    first, offset = divmod(start, LANES)
    blocks = -(-(offset + count) // LANES)
    return _codes_of(philox_words(address, first, blocks)).reshape(-1)[offset : offset + count]


def normals(address: Address, start: int, count: int) -> NDArray[np.float32]:
    """Return standard normals of elements ``start .. start + count - 1`` of a tensor: float32 [count].

    Raises ValueError when an element is outside [0, 2**59).
    """
    return quantiles()[codes(address, start, count)]


def normals_slice(
    address: Address, shape: tuple[int, int], *, row: slice = slice(None), col: slice = slice(None)
) -> NDArray[np.float32]:
    """Return standard normals of ``tensor[row, col]`` of a tensor of this 2-d ``shape``: float32 [rows, columns].

    Raises ValueError for a step other than 1 and for bounds outside the shape.
    """
    (row_start, row_stop), (col_start, col_stop) = _span("row", row, shape[0]), _span("column", col, shape[1])
    _check_range("element", 0, shape[0] * shape[1], ELEMENT_LIMIT)
    height, width = row_stop - row_start, col_stop - col_start
    first = row_start * shape[1] + col_start
    starts = np.arange(height, dtype=np.uint64)[:, None] * np.uint64(shape[1]) + np.uint64(first)
    # Every row starts in its own block at its own lane, so draw enough blocks for the worst lane and pick.
    reach: NDArray[np.uint64] = np.arange((width + 2 * LANES - 2) // LANES, dtype=np.uint64)
    blocks = starts // np.uint64(LANES) + reach
    drawn = _codes_of(_words_of(address, blocks)).reshape(height, reach.size * LANES)
    lanes = (starts % np.uint64(LANES)).astype(np.intp) + np.arange(width)
    return quantiles()[np.take_along_axis(drawn, lanes, axis=1)]


def factors(
    address: Address,
    shape: tuple[int, int],
    *,
    rank: int = 1,
    row: slice = slice(None),
    col: slice = slice(None),
    subspaces: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return rows of the low-rank factors of an (m, n) weight ``W``: A[row] and B[col], float32 [rows, rank] each.

    The perturbation of ``W[row, col]`` is ``sqrt(subspaces / rank) * A[row] @ B[col].T``. A is (m, rank) of stream
    ``FACTOR_A``, B is (n, rank) of stream ``FACTOR_B``, both row major; the address's own stream is not used. Rows of
    A that are not in the pair's subspace are zero. Raises ValueError for bounds outside the shape.
    """
    _check("rank - 1", rank - 1, WORD_LIMIT)
    left, right = replace(address, stream=FACTOR_A), replace(address, stream=FACTOR_B)
    a = normals_slice(left, (shape[0], rank), row=row)
    first, last = _span("row", row, shape[0])
    a[~in_subspace(address, first, last - first, subspaces=subspaces)] = 0
    return a, normals_slice(right, (shape[1], rank), row=col)


def signs(address: Address, start: int, count: int) -> NDArray[np.float32]:
    """Return the signs, -1 or 1, of the normals of elements ``start .. start + count - 1``: float32 [count].

    Raises ValueError when an element is outside [0, 2**59).
    """
    return sign_table()[codes(address, start, count)]


def flipout(
    address: Address,
    shape: tuple[int, int],
    *,
    shared_noise: int = 1,
    row: slice = slice(None),
    col: slice = slice(None),
) -> NDArray[np.float32]:
    """Return the flipout perturbation E[row, col] = U * (r s^T) of an (m, n) weight: float32 [rows, columns].

    U (m, n) are normals of stream ``SHARED`` and pair mod ``shared_noise``, the same for all such pairs of a
    generation. r (m) are signs of stream ``FACTOR_A``, s (n) of ``FACTOR_B``, of the pair itself. Every element is
    N(0, 1). The address's own stream is not used. Raises ValueError for bounds outside the shape.
    """
    _check("shared noise - 1", shared_noise - 1, WORD_LIMIT)
    (top, bottom), (left, right) = _span("row", row, shape[0]), _span("column", col, shape[1])
    shared = normals_slice(shared_address(address, shared_noise), shape, row=row, col=col)
    r = signs(replace(address, stream=FACTOR_A), top, bottom - top)
    return shared * (r[:, None] * signs(replace(address, stream=FACTOR_B), left, right - left))


def shared_address(address: Address, shared_noise: int) -> Address:
    """Return the address of the normals U that the address's pair shares, one of ``shared_noise`` in a generation."""
    return replace(address, stream=SHARED, pair=address.pair % shared_noise)


def subspaces_of(address: Address, start: int, count: int, *, subspaces: int) -> NDArray[np.uint16]:
    """Return the subspace, 0 to K - 1, of elements (or rows of A) ``start .. start + count - 1``: uint16 [count].

    ``floor(code * K / 65536)`` of the code of stream ``SUBSPACE``, the address's generation and pair 0: the same for
    all pairs of a generation. The address's own stream and pair are not used. Raises ValueError for K outside
    [1, 65536) and for elements outside [0, 2**59).
    """
    _check("subspaces - 1", subspaces - 1, SUBSPACE_LIMIT)
    drawn = codes(replace(address, stream=SUBSPACE, pair=0), start, count).astype(np.uint32)
    return ((drawn * np.uint32(subspaces)) >> np.uint32(16)).astype(np.uint16)


def in_subspace(address: Address, start: int, count: int, *, subspaces: int) -> NDArray[np.bool_]:
    """Return which of these elements (or rows of A) the address's pair perturbs: those of subspace pair mod K."""
    return subspaces_of(address, start, count, subspaces=subspaces) == address.pair % subspaces


def amplitude(weight: float, *, rank: int = 1, subspaces: int = 1) -> float:
    """Return the factor of tabulated normals, ``weight * sqrt(K) / sqrt(rank)``, before its rounding to float32.

    ``weight`` is a term's, or the sigma of a member with its sign. Rank 1 and one subspace leave it unchanged.
    """
    return weight * math.sqrt(subspaces) / math.sqrt(rank)


def integers(address: Address, start: int, count: int) -> NDArray[np.uint64]:
    """Return uniform 64-bit integers, uint64 [count].

    Number ``i`` is ``word[2 j] + 2**32 word[2 j + 1]`` of block ``i // 2``, with ``j = i % 2``.

    Raises ValueError when a number's index is outside [0, 2**57).
    """
    _check_range("index", start, count, BLOCK_LIMIT * 2)
    first, offset = divmod(start, 2)
    drawn = philox_words(address, first, -(-(offset + count) // 2)).reshape(-1, 2).astype(np.uint64)
    return (drawn[:, 0] | (drawn[:, 1] << _HALF))[offset : offset + count]


def uniforms(address: Address, start: int, count: int) -> NDArray[np.float64]:
    """Return uniform numbers in [0, 1), float64 [count]: the top 53 bits of `integers`, times 2**-53, exactly."""
    return (integers(address, start, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(address: Address, n: int) -> NDArray[np.int64]:
    """Return a uniform permutation of 0..n-1, int64 [n]: the order that sorts n `integers`, ties by index."""
    return np.argsort(integers(address, 0, n), kind="stable").astype(np.int64)


def _words_of(address: Address, blocks: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return words uint32 [..., 4] of an array of block numbers [...]."""
    counter = np.empty((*blocks.shape, 4), np.uint32)
    counter[..., 0] = blocks & _LOW
    counter[..., 1] = np.uint64(address.stream << 24) | (blocks >> _HALF)
    counter[..., 2] = address.pair
    counter[..., 3] = address.generation
    return philox4x32(counter, address.key)


def _codes_of(drawn: NDArray[np.uint32]) -> NDArray[np.uint16]:
    """Convert words uint32 [..., 4] to codes uint16 [..., 8]: low half of word 0, its high half, and so on."""
    halves = np.stack([drawn & np.uint32(0xFFFF), drawn >> np.uint32(16)], axis=-1)
    return halves.astype(np.uint16).reshape(*drawn.shape[:-1], LANES)


def _span(what: str, piece: slice, size: int) -> tuple[int, int]:
    """Return start and stop of a slice of step 1 inside [0, size]; unlike Python, never clip silently."""
    start: Any = 0 if piece.start is None else piece.start
    stop: Any = size if piece.stop is None else piece.stop
    if piece.step not in (None, 1) or not 0 <= start <= stop <= size:
        raise ValueError(
            f"{what} slice {start}:{stop}:{piece.step} is not a plain range inside 0:{size}; "
            "give start <= stop and no step"
        )
    return int(start), int(stop)


def _check(what: str, value: int, limit: int) -> None:
    if not 0 <= value < limit:
        raise ValueError(f"{what} is {value}, but it must be at least 0 and below {limit}")


def _check_range(what: str, start: int, count: int, limit: int) -> None:
    if start < 0 or count < 0 or start + count > limit:
        raise ValueError(f"{what} range starts at {start} with {count} items, but it must lie in [0, {limit})")


@dataclass(frozen=True, slots=True)
class Noise:
    """The perturbation of an engine: the run seed of every noise address, and the shape of the perturbation.

    ``perturbation`` is "lowrank" (A·Bᵀ/√r, rank r), "flipout" or "gaussian"; ``weights_dtype`` "float32" or "model"
    (the current weights in the model's own type); ``trainable`` are patterns of Hugging Face names, see
    `trainable.select`.
    With K ``subspaces`` pair p perturbs one K-th of the elements, with √K times the noise, see above.
    ``shared_noise`` is the number of different U in a generation, for flipout.
    """

    run_seed: int
    perturbation: str = "lowrank"
    rank: int = 1
    weights_dtype: str = "float32"
    trainable: tuple[str, ...] = ("*",)
    subspaces: int = 1
    shared_noise: int = 1
