"""One table: numpy ≡ numba ≡ Triton, for everything that decides a weight's bits.

Every type meets every place and every slice; ranks, subspaces and σ take turns, so that types and places meet each.
Sizes are just beyond a block or a tile: Triton's interpreter takes its time for each program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain, cycle
from typing import Any

import numpy as np
import pytest

from backends import PAIRS, Numba, Reference, Triton
from references import DTYPES, an_update, same_bits, weights
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import noise
from seedtune.numerics.noise import Address, Stream
from seedtune.types import Decay, Update

triton = pytest.importorskip("triton", reason="triton is not installed; install it with: pip install 'triton>=3.7'")

KEY = noise.key(2**63 + 1, "model.embed_tokens.weight")
WHO = [(0, 0), (2**32 - 1, 7), (12, 2**32 - 1)]
PLACES = [(0, 0), (0, 1), (8, 8), (5, 700), (2**31 - 3, 64), (2**35 + 1, 2049), (2**59 - 9, 9)]
"""(first element, elements): from nothing to the last element of the largest tensor."""

SLICES = {
    "whole": ((9, 130), (9, 130), 0, 0),
    "one row": ((1, 9), (1, 9), 0, 0),
    "aligned slice": ((2, 520), (2**30, 2**20), 2**29, 16),
    "unaligned slice": ((3, 25), (2**30, 2**20 + 3), 2**29 + 1, 11),
}
"""shape of the slice, shape of the whole tensor, first row and column."""

UPDATES = (
    an_update(2**32 - 1, 3),
    Update(4, ()),
    an_update(5, 2, decay=Decay(l2=0.01)),
    Update(6, (), Decay(l2=0.1, l1=0.002)),
    an_update(7, 1),
)

Case = Callable[[Any], Any]


def noises() -> Iterator[tuple[str, Case]]:
    for start, count in PLACES:
        for stream in (Stream.GAUSSIAN, Stream.ROUNDING):
            address = Address(KEY, stream, generation=2**32 - 2, pair=3)
            yield f"normals of {stream.name} {start} {count}", lambda b, a=address, s=start, c=count: b.normals(a, s, c)
        for stream in (Stream.FACTOR_A, Stream.FACTOR_B):
            options = {"start": start, "count": count}
            yield f"{stream.name} {start} {count}", lambda b, t=stream, h=options: b.factors(KEY, t, WHO, **h)
            yield f"signs of {stream.name} {start} {count}", lambda b, t=stream, h=options: b.signs(KEY, t, WHO, **h)


def fingerprints() -> Iterator[tuple[str, Case]]:
    for start, count in PLACES:
        for dtype in DTYPES:
            array = weights(dtype, count)
            key = fp.tensor_key("model.embed_tokens.weight", array.itemsize)
            yield f"fingerprint {dtype} {start} {count}", lambda b, a=(array, key, start): b.fingerprint(*a)


def perturbations() -> Iterator[tuple[str, Case]]:
    address = Address(KEY, Stream.GAUSSIAN, generation=3, pair=2**32 - 1)
    for start, count in PLACES:
        for source, out in PAIRS:
            for sigma in (-0.02, 0.0) if count == 700 else (-0.02,):
                arguments = (weights(source, count), out, sigma, address, start)
                yield f"perturb {source} {out} {sigma} {start} {count}", lambda b, a=arguments: b.perturbed(*a)


def updates() -> Iterator[tuple[str, Case]]:
    for dtype in DTYPES:
        for start, count in PLACES:
            pieces = (weights(dtype, count), KEY, UPDATES, start, weights(dtype, count, seed=1))
            yield f"gaussian update {dtype} {start} {count}", lambda b, a=pieces: b.updated_gaussian(*a)
    yield from lowrank_updates((1, 1), (3, 1))
    yield from flipout_updates()


def lowrank_updates(*turns: tuple[int, int], every: int = 1) -> Iterator[tuple[str, Case]]:
    """Every type in every slice, or in every second one, of a rank and in K subspaces that take turns."""
    for row, dtype in enumerate(DTYPES):
        for column, (name, (shape, *place)) in list(enumerate(SLICES.items()))[row % every :: every]:
            rank, k = turns[(row + column) % len(turns)]
            theta, anchor = weights(dtype, *shape), weights("float32", *shape, seed=1)
            options = {"rank": rank, "place": tuple(place), "anchor": anchor, "k": k}
            case = f"rank {rank} {dtype} {name} in {k} subspaces"
            yield case, lambda b, t=theta, h=options: b.updated_lowrank(t, KEY, UPDATES, **h)


def flipout_updates() -> Iterator[tuple[str, Case]]:
    """Every type in every slice, with a number of shared normals that takes turns."""
    for row, dtype in enumerate(DTYPES):
        for column, (name, (shape, *place)) in enumerate(SLICES.items()):
            k = (1, 3, 2)[(row + column) % 3]
            theta, anchor = weights(dtype, *shape), weights("float32", *shape, seed=1)
            options = {"place": tuple(place), "anchor": anchor, "k": k}
            case = f"flipout {dtype} {name} with {k} shared"
            yield case, lambda b, t=theta, h=options: b.updated_flipout(t, KEY, UPDATES, **h)


def subspaces() -> Iterator[tuple[str, Case]]:
    """Every place again for pairs that perturb one of K subspaces each; K and types take turns."""
    for turn, (k, (start, count)) in enumerate(zip(cycle((2, 3, 4)), PLACES, strict=False)):
        name, rank = f"{k} subspaces {start} {count}", 1 + k % 2
        rows = {"start": start // rank * rank, "count": count // rank * rank, "rank": rank, "subspaces": k}
        yield f"A of {name}", lambda b, h=rows: b.factors(KEY, Stream.FACTOR_A, WHO, **h)
        yield f"B of {name}", lambda b, h=rows: b.factors(KEY, Stream.FACTOR_B, WHO, **h)
        source, out = PAIRS[turn % len(PAIRS)]
        arguments = (weights(source, count), out, 0.02, Address(KEY, Stream.GAUSSIAN, 3, 2**32 - 1), start, k)
        yield f"perturb {source} {out} in {name}", lambda b, a=arguments: b.perturbed(*a)
        dtype = DTYPES[(turn + turn // 3) % 3]
        pieces = (weights(dtype, count), KEY, UPDATES, start, weights(dtype, count, seed=1), k)
        yield f"gaussian update {dtype} in {name}", lambda b, a=pieces: b.updated_gaussian(*a)
    yield from lowrank_updates((1, 2), (3, 3), (3, 2), (1, 4), every=2)


TABLE = dict(chain(noises(), fingerprints(), perturbations(), updates(), subspaces()))


@cache
def by_the_reference(case: str) -> Any:
    return TABLE[case](Reference())


@pytest.mark.parametrize("backend", ["numba", "triton"])
@pytest.mark.parametrize("case", TABLE)
def test_every_backend_gives_the_bits_of_the_numpy_reference(case: str, backend: str) -> None:
    kernels = Numba() if backend == "numba" else Triton("cpu" if triton.knobs.runtime.interpret else "cuda")
    found, expected = TABLE[case](kernels), by_the_reference(case)
    if isinstance(expected, np.ndarray):
        assert same_bits(found, expected)
    else:
        assert found == expected
