"""The Triton kernels give the references' bits: on the GPU where there is one, else in Triton's interpreter.

Here is what `invariant/test_kernels_agree.py` does not compare in every type, place and slice.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import backends
from backends import Place, Reference, Triton
from references import DTYPES, mix_sum, same_bits, weights
from seedtune.errors import ConfigError, MissingExtraError
from seedtune.numerics import fingerprint as fp
from seedtune.numerics import noise, rounding
from seedtune.numerics.kernels import cpu, gpu, gpu_launch
from seedtune.numerics.kernels.select import kernels_for
from seedtune.numerics.noise import Address, Stream
from seedtune.types import Decay, Term, Update

triton = pytest.importorskip("triton", reason="triton is not installed; install it with: " + gpu_launch.INSTALL)

KEY = noise.key(42, "model.layers.0.mlp.up_proj.weight")
HERE = Address(KEY, Stream.GAUSSIAN, generation=2**32 - 1, pair=2**31 + 5)
PROGRAM = gpu_launch.BLOCKS * noise.LANES
REFERENCE = Reference()

PLAIN = Update(2**31 + 7, (Term(2**32 - 1, 0, 0.01), Term(3, 2**31, -0.02), Term(3, 5, 1e-5)))
PULLED = Update(4, (Term(4, 1, 0.005),), Decay(l2=0.1, l1=0.002))
ONLY_PULLED = Update(5, (), Decay(l1=0.001))
NOTHING = Update(6, ())
LATER = Update(2**32 - 1, (Term(6, 0, -0.004), Term(6, 0, -0.004)))
MANY = (PLAIN, NOTHING, PULLED, ONLY_PULLED, LATER)


@pytest.fixture
def triton_kernels() -> Triton:
    return Triton("cpu" if triton.knobs.runtime.interpret else "cuda")


# ------------------------------------------------------------------------------------------------ noise


@pytest.mark.parametrize(
    ("start", "count"),
    [
        (0, 0),
        (0, PROGRAM),
        (3, PROGRAM),
        (8, PROGRAM + 1),
        (2**31 - 5, 399),
        (2**35 - 100, 1),
        (2**40 + 1, 8),
        (2**59 - 3000, PROGRAM + 1),
    ],
)
def test_filled_normals_are_the_references(triton_kernels: Triton, start: int, count: int) -> None:
    assert same_bits(triton_kernels.normals(HERE, start, count), noise.normals(HERE, start, count))


@pytest.mark.parametrize("stream", list(Stream))
def test_filled_normals_are_the_references_in_every_stream(triton_kernels: Triton, stream: Stream) -> None:
    address = Address(KEY, stream, generation=2, pair=1)
    assert same_bits(triton_kernels.normals(address, 0, 9), noise.normals(address, 0, 9))


def test_every_quantile_can_be_drawn(triton_kernels: Triton) -> None:
    found, codes = triton_kernels.normals(HERE, 0, 200_000), noise.codes(HERE, 0, 200_000)
    assert np.unique(codes).size > 60_000
    assert same_bits(found, noise.quantiles()[codes])


def test_the_upper_half_of_the_quantiles_mirrors_the_lower() -> None:
    assert same_bits(noise.quantiles()[::-1].copy(), -noise.quantiles())


@pytest.mark.parametrize(("pairs", "count", "start"), [(6, 100, 6), (2, PROGRAM + 1, 2**33 + 7), (0, 4, 0)])
def test_filled_factors_are_the_references(triton_kernels: Triton, pairs: int, count: int, start: int) -> None:
    who = [(p * 1000 + 2**31, pairs - p) for p in range(pairs)]
    arguments = (KEY, Stream.FACTOR_B, who)
    expected = REFERENCE.factors(*arguments, start=start, count=count)
    assert same_bits(triton_kernels.factors(*arguments, start=start, count=count), expected)


# ------------------------------------------------------------------------------------------------ perturb


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_to_nearest_is_the_references_for_numbers_of_every_kind(triton_kernels: Triton, dtype: str) -> None:
    rng = np.random.default_rng(0)
    anything = rng.integers(0, 2**32, 20_000, np.uint32)
    small = (rng.standard_normal(5_000, np.float32) * np.float32(2.0**-15)).view(np.uint32)
    ties = rng.integers(0, 2**16, 5_000, np.uint32) << np.uint32(16) | np.uint32(0x8000)
    half_ties = rng.integers(0, 2**19, 5_000, np.uint32) << np.uint32(13) | np.uint32(0x1000)
    edges = [0, 1, 0x33000000, 0x33000001, 0x387FF000, 0x477FEFFF, 0x477FF000, 0x7F7FFFFF, 0x7F800000, 0x7F800001]
    words = np.concatenate([anything, small, ties, half_ties, np.array(edges, np.uint32)])
    values = np.concatenate([words, words ^ np.uint32(1 << 31)]).view(np.float32)
    assert same_bits(triton_kernels.perturbed(values, dtype, 0.0, HERE, 0), rounding.nearest(values, dtype))


def test_perturbing_in_place_gives_the_same_bits(triton_kernels: Triton) -> None:
    live = triton_kernels.tensor(weights("bfloat16", 1000))
    gpu.perturb(live, live, 0.5, HERE)
    assert same_bits(backends.to_numpy(live), REFERENCE.perturbed(weights("bfloat16", 1000), "bfloat16", 0.5, HERE, 0))


def test_slices_are_perturbed_as_the_whole(triton_kernels: Triton) -> None:
    source = weights("bfloat16", 3000)
    pieces = [triton_kernels.perturbed(source[a:b], "bfloat16", 0.1, HERE, a) for a, b in ((0, 1001), (1001, 3000))]
    assert same_bits(np.concatenate(pieces), triton_kernels.perturbed(source, "bfloat16", 0.1, HERE, 0))


# ------------------------------------------------------------------------------------------------ updates


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_updates_without_decay_are_the_references(triton_kernels: Triton, dtype: str) -> None:
    theta, updates = weights(dtype, PROGRAM + 1), (PLAIN, NOTHING, LATER)
    found = triton_kernels.updated_gaussian(theta, KEY, updates, 2**40 + 3)
    assert same_bits(found, REFERENCE.updated_gaussian(theta, KEY, updates, 2**40 + 3))


@pytest.mark.parametrize(
    ("dtype", "rank", "updates", "shape", "place"),
    [
        ("float32", 3, (PLAIN, LATER), (9, 530), ((9, 530), 0, 0)),
        ("bfloat16", 1, (PLAIN, LATER), (9, 40), ((2**30, 2**20), 2**29, 16)),
        ("float16", 3, (PLAIN, LATER), (9, 40), ((2**30, 2**20 + 3), 2**29, 11)),
        ("bfloat16", 3, MANY, (1, 1), ((1, 1), 0, 0)),
        ("float16", 1, MANY, (0, 8), ((4, 8), 4, 0)),
    ],
    ids=["whole", "aligned slice", "unaligned slice", "single", "empty"],
)
def test_lowrank_updates_without_decay_or_of_little_are_the_references(
    triton_kernels: Triton, dtype: str, rank: int, updates: tuple[Update, ...], shape: tuple[int, int], place: Place
) -> None:
    theta, anchor = weights(dtype, *shape), weights(dtype, *shape, seed=1)
    found = triton_kernels.updated_lowrank(theta, KEY, updates, rank=rank, place=place, anchor=anchor)
    assert same_bits(found, REFERENCE.updated_lowrank(theta, KEY, updates, rank=rank, place=place, anchor=anchor))


def test_the_size_of_scratch_memory_changes_no_bit(triton_kernels: Triton, monkeypatch: pytest.MonkeyPatch) -> None:
    theta, updates, place = weights("bfloat16", 2, 24), (PLAIN, LATER, PLAIN), ((2, 24), 0, 0)
    expected = triton_kernels.updated_lowrank(theta, KEY, updates, rank=1, place=place)
    monkeypatch.setattr(gpu, "SCRATCH_LIMIT", 5 * 4 * (2 + 24))
    assert [len(group) for group in gpu._groups(updates, 4 * (2 + 24))] == [2, 1]
    assert same_bits(triton_kernels.updated_lowrank(theta, KEY, updates, rank=1, place=place), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_without_terms_and_decay_changes_nothing_not_even_negative_zeros(
    triton_kernels: Triton, dtype: str
) -> None:
    theta = weights(dtype, 8, 16)
    assert same_bits(triton_kernels.updated_gaussian(theta.reshape(-1), KEY, (NOTHING,)), theta.reshape(-1))
    place = ((8, 16), 0, 0)
    assert same_bits(triton_kernels.updated_lowrank(theta, KEY, (NOTHING,), rank=1, place=place), theta)
    assert same_bits(triton_kernels.updated_gaussian(theta.reshape(-1), KEY, ()), theta.reshape(-1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_is_the_references_for_numbers_of_every_kind(triton_kernels: Triton, dtype: str) -> None:
    """Every number of the type meets noise of one of four sizes."""
    theta = np.random.default_rng(0).permutation(1 << 16).astype(np.uint16).view(rounding.ARRAYS[dtype])
    theta = theta[~np.isnan(rounding.widen(theta))]
    for part, size in enumerate((2.0**-24, 2.0**-15, 1.0, 3e4)):
        some, updates = theta[part::4].copy(), (Update(9, (Term(9, 0, size),)),)
        expected = REFERENCE.updated_gaussian(some, KEY, updates)
        assert same_bits(triton_kernels.updated_gaussian(some, KEY, updates), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_updated_nan_stays_nan(triton_kernels: Triton, dtype: str) -> None:
    theta = rounding.nearest(np.array([np.nan, -np.nan, 1.0], np.float32), dtype)
    # Which NaN is the processor's own affair.
    found = rounding.widen(triton_kernels.updated_gaussian(theta, KEY, (PULLED, LATER), anchor=theta))
    assert np.isnan(found).tolist() == [True, True, False]


def test_a_float32_anchor_serves_16_bit_weights(triton_kernels: Triton) -> None:
    theta, anchor = weights("bfloat16", 300), weights("float32", 300, seed=1)
    found = triton_kernels.updated_gaussian(theta, KEY, (PULLED,), 0, anchor)
    assert same_bits(found, REFERENCE.updated_gaussian(theta, KEY, (PULLED,), 0, anchor))


# ------------------------------------------------------------------------------------------------ fingerprint


@pytest.mark.parametrize("dtype", DTYPES)
def test_fingerprints_of_more_than_one_program_are_the_references(triton_kernels: Triton, dtype: str) -> None:
    start, array = 2**40 + 3, weights(dtype, gpu.MIX_STEPS * gpu.MIX_BLOCK + 1)
    key = fp.tensor_key("name", array.itemsize)
    assert triton_kernels.fingerprint(array, key, start) == mix_sum(fp.bits_of(array), key, start)


def test_fingerprints_of_pieces_add_up(triton_kernels: Triton) -> None:
    array = weights("bfloat16", 1500)
    key = fp.tensor_key("name", 2)
    parts = [triton_kernels.fingerprint(array[a:b], key, a) for a, b in ((0, 700), (700, 1500))]
    assert fp.combine(parts) == triton_kernels.fingerprint(array, key, 0)


# ------------------------------------------------------------------------------------------------ errors


def test_wrong_tensors_are_refused_with_what_they_are(triton_kernels: Triton) -> None:
    single, half = triton_kernels.tensor(weights("float32", 8)), triton_kernels.tensor(weights("float16", 8))
    with pytest.raises(ValueError, match=r"out is a contiguous 1-d tensor of torch\.float16; .* 1-d tensor of float32"):
        gpu.fill_normals(half, HERE)
    with pytest.raises(ValueError, match=r"theta is a strided 1-d tensor"):
        gpu.update_gaussian(single[::2], KEY, (PLAIN,))
    with pytest.raises(ValueError, match=r"weights in torch\.float16 give members in torch\.float16, not in"):
        gpu.perturb(single, half, 0.1, HERE)
    with pytest.raises(ValueError, match=r"weights is \(4,\) on .*; it must be \(8,\)"):
        gpu.perturb(single, single[:4], 0.1, HERE)
    with pytest.raises(ValueError, match=r"element range starts at -1"):
        gpu.fill_normals(single, HERE, -1)
    with pytest.raises(ValueError, match=r"2 pairs need generations and pairs as numpy uint32 \[2\]"):
        gpu.fill_factors(single.view(2, 4), KEY, 1, np.zeros(2, np.int64), np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match=r"a slice of shape \(2, 4\) at \(1, 0\) does not lie inside \(2, 4\)"):
        gpu.update_lowrank(single.view(2, 4), KEY, (PLAIN,), rank=1, row_start=1)


def test_generations_and_pairs_of_more_than_32_bits_are_refused(triton_kernels: Triton) -> None:
    theta = triton_kernels.tensor(weights("float32", 8))
    for update in (Update(2**32, PLAIN.terms), Update(0, (Term(2**32, 0, 1.0),)), Update(0, (Term(0, -1, 1.0),))):
        with pytest.raises(ValueError, match="must be at least 0 and below 4294967296"):
            gpu.update_gaussian(theta, KEY, (update,))


@pytest.mark.parametrize("updates", [(PULLED,), (PLAIN, ONLY_PULLED)])
def test_a_decay_without_base_weights_is_refused(triton_kernels: Triton, updates: tuple[Update, ...]) -> None:
    theta = triton_kernels.tensor(weights("float32", 2, 4))
    with pytest.raises(ValueError, match="no anchor is given; give the base weights"):
        gpu.update_gaussian(theta.view(-1), KEY, updates)
    with pytest.raises(ValueError, match="no anchor is given; give the base weights"):
        gpu.update_lowrank(theta, KEY, updates, rank=1)


def test_tensors_on_the_cpu_are_refused_unless_triton_interprets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"out lies on cpu: these kernels need a CUDA device"):
        gpu.fill_normals(torch.empty(8), HERE)


def test_a_missing_triton_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "seedtune.numerics.kernels.gpu_triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(MissingExtraError, match=r"Install it with: pip install 'triton>="):
        kernels_for("cuda")


def test_another_missing_module_is_not_taken_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seedtune.numerics.kernels.gpu_triton", None)
    with pytest.raises(ModuleNotFoundError, match="seedtune"):
        kernels_for("cuda")


def test_kernels_are_selected_by_device() -> None:
    assert kernels_for("cpu") is cpu
    assert kernels_for("cuda") is kernels_for("cuda:1") is gpu
    with pytest.raises(ConfigError, match="device='mps': there are kernels for cpu and cuda"):
        kernels_for("mps")


def test_importing_the_gpu_kernels_imports_neither_torch_nor_triton() -> None:
    code = "import sys, seedtune.numerics.kernels.gpu; sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------ compiled code


@pytest.mark.slow
def test_compiled_kernels_fuse_no_products_flush_no_subnormals_and_spill_no_registers_on_four_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    script = Path(importlib.import_module("backends").__file__).parent / "unit/numerics/kernels/compile_kernels.py"
    done = subprocess.run([sys.executable, str(script)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    kernels = "fill", "keep_rows", "mix", "perturb", "update_flipout", "update_gaussian", "update_lowrank"
    of_noise = [line for line in lines if line.split()[1] in kernels]
    assert sorted({line.split()[1] for line in of_noise if line.startswith("sm_90")}) == [*kernels]
    assert [line for line in of_noise if not line.endswith(": fused 0, flushed 0, spilled 0")] == []
    of_layers = [line for line in lines if line.split()[1] == "layer"]
    assert [line for line in of_layers if not line.endswith(": spilled 0")] == []
    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        assert sum(line.startswith(target) for line in of_noise) >= 4
        assert sum(line.startswith(target) for line in of_layers) == 7
