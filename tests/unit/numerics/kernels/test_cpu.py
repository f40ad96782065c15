"""The CPU kernels give the references' bits, for any slice, size, offset and number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from references import mix_sum
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import noise
from seedtune.numerics.kernels import cpu
from seedtune.numerics.noise import Address, Stream

KEY = noise.key(42, "model.layers.0.mlp.up_proj.weight")
HERE = Address(KEY, Stream.GAUSSIAN, generation=2**32 - 1, pair=2**31 + 5)
BIG = 2 * cpu.PARALLEL_FROM + 13


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = numba.get_num_threads()
    count = min(request.param, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(count)
    yield count
    numba.set_num_threads(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def same_bits(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and bool((x.view(np.uint32) == y.view(np.uint32)).all())


def empty(*shape: int) -> np.ndarray:
    return np.full(shape, np.nan, np.float32)


def single(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


# ------------------------------------------------------------------------------------------------ noise


@pytest.mark.parametrize("start", [0, 3, 8, 63, 2**31 - 5, 2**35 - 100, 2**40 + 1, 2**59 - 400])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 64, 65, 128, 399])
def test_filled_normals_are_the_references(start: int, count: int) -> None:
    out = empty(count)
    cpu.fill_normals(out, HERE, start)
    assert same_bits(out, noise.normals(HERE, start, count))


@pytest.mark.parametrize("start", [0, 2**40 + 5])
def test_many_filled_normals_are_the_references_for_any_threads(threads: int, start: int) -> None:
    out = empty(BIG)
    cpu.fill_normals(out, HERE, start)
    assert same_bits(out, noise.normals(HERE, start, BIG))


def test_filled_normals_are_golden() -> None:
    out = empty(8)
    cpu.fill_normals(out, Address((4188904742, 2800538471), Stream.GAUSSIAN, generation=7, pair=3))
    found = [f"{word:08x}" for word in out.view(np.uint32)]
    assert found == [
        "3f191be3",
        "3f21da36",
        "bfdd870a",
        "bf215fd6",
        "3fce5886",
        "c0011d2a",
        "ba6ba01f",
        "be7e9db6",
    ]


@pytest.mark.parametrize("stream", list(Stream))
def test_filled_normals_are_the_references_in_every_stream(stream: Stream) -> None:
    out, address = empty(9), Address(KEY, stream, generation=2, pair=1)
    cpu.fill_normals(out, address)
    assert same_bits(out, noise.normals(address, 0, 9))


def test_python_threads_may_call_the_kernels_at_once() -> None:
    outs = [empty(BIG) for _ in range(6)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda out: cpu.fill_normals(out, HERE), outs))
    assert all(same_bits(out, outs[0]) for out in outs)
    assert not np.isnan(outs[0]).any()


@pytest.mark.parametrize(("pairs", "rows"), [(1, 5), (6, 100), (3, 70_000)])
def test_filled_factors_are_the_references_for_every_pair(threads: int, pairs: int, rows: int) -> None:
    generations = np.arange(pairs, dtype=np.uint32) * 1000 + 2**31
    members = np.arange(pairs, dtype=np.uint32)[::-1].copy()
    out, rank, first = empty(pairs, rows * 2), 2, 3
    cpu.fill_factors(out, KEY, Stream.FACTOR_B, generations, members, start=first * rank)
    for p in range(pairs):
        address = Address(KEY, generation=int(generations[p]), pair=int(members[p]))
        b = noise.factors(address, (1, first + rows), rank=rank, col=slice(first, first + rows))[1]
        assert same_bits(out[p], b.reshape(-1))


# ------------------------------------------------------------------------------------------------ fingerprint


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize(("count", "start"), [(0, 0), (1, 9), (1001, 2**40 + 3), (BIG, 0), (BIG, 2**58)])
def test_the_fingerprint_is_the_references(
    threads: int, rng: np.random.Generator, dtype: type, count: int, start: int
) -> None:
    bits = rng.integers(0, np.iinfo(dtype).max, count, dtype, endpoint=True)
    key = fp.tensor_key("w", bits.itemsize)
    assert cpu.fingerprint(bits, key, start) == mix_sum(bits, key, start)


def test_the_fingerprint_of_slices_adds_up(rng: np.random.Generator) -> None:
    bits = single(rng, 21, 50).view(np.uint32)
    key = fp.tensor_key("w", 4)
    parts = [
        cpu.fingerprint_slice(bits[r : r + 7, c : c + 25].copy(), key, bits.shape, row_start=r, col_start=c)
        for r in (14, 0, 7)
        for c in (0, 25)
    ]
    assert fp.combine(parts) == mix_sum(bits.reshape(-1), key, 0)


# ------------------------------------------------------------------------------------------------ errors

PAIRS, BITS = np.arange(3, dtype=np.uint32), np.zeros((3, 3), np.uint32)
WRONG: dict[str, tuple[str, Callable[[], object]]] = {
    "dtype": ("must be a C-contiguous", lambda: cpu.fill_normals(np.empty(3), HERE)),
    "strided": ("strided", lambda: cpu.fill_normals(empty(6)[::2], HERE)),
    "range": ("element range", lambda: cpu.fill_normals(empty(3), HERE, 2**59)),
    "slice": (
        "does not lie inside",
        lambda: cpu.fingerprint_slice(BITS, KEY, (4, 4), row_start=2),
    ),
    "pairs": ("need as many", lambda: cpu.fill_factors(empty(4, 2), KEY, 1, PAIRS, PAIRS)),
    "bits": ("bits is", lambda: cpu.fingerprint(empty(4), (0, 0))),
}


@pytest.mark.parametrize(("message", "call"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_refused_by_name(message: str, call: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=message):
        call()
