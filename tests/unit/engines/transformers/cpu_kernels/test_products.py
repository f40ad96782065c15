"""Products of our own: one chain of sums per output, whatever the rows, the threads and the vectors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numba
import numpy as np
import pytest
import torch
from torch import Tensor

from seedtune.engines.transformers.cpu_kernels import products
from seedtune.engines.transformers.members.population_linear import LiveWeight, ProductForm, bits
from seedtune.numerics.machine import processor
from vectors import AVX2

KINDS = [
    pytest.param(
        kind,
        dtype,
        marks=pytest.mark.skipif(
            not products.available(kind, bfloat16=dtype == torch.bfloat16), reason=f"no {kind} on this processor"
        ),
        id=f"{kind}-{str(dtype).removeprefix('torch.')}",
    )
    for kind, dtype in (("fma32", torch.bfloat16), ("fma32", torch.float32), ("bf16dot", torch.bfloat16))
]
EVERY_KIND = pytest.mark.parametrize(("kind", "dtype"), KINDS)
SHAPES = [(64, 2), (192, 96), (64, 1000), (100, 61), (1, 7), (33, 64)]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def product(x: Tensor, weight: Tensor, kind: Any, *, bias: Tensor | None = None, plain: bool = False) -> Tensor:
    out = torch.full((x.shape[0], weight.shape[0]), torch.nan, dtype=x.dtype)
    start = products.starts(None if bias is None else bias.numpy(), weight.shape[0], kind)
    layout = bits(weight) if plain else products.pack(bits(weight), kind)
    products.multiply(bits(out), bits(x), layout, start, kind=kind)
    return out


def chain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition of fma32 for one row and output, in exact float64 steps that are each rounded once to float32.

    The product of two float32 is exact in float64 only for short mantissas, as those of bfloat16 are.
    """
    total = bias.clone()
    for k in range(x.shape[1]):
        exact = x[:, None, k].double() * weight[None, :, k].double() + total.double()
        total = exact.float()
    return total


@EVERY_KIND
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 6, 7, 12, 13, 32, 200])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_product_is_the_float64_product_rounded_once(
    rows: int, outputs: int, inputs: int, kind: Any, dtype: torch.dtype
) -> None:
    x, weight = normal(rows, inputs, seed=1, dtype=dtype), normal(outputs, inputs, seed=2, dtype=dtype)
    start = torch.linspace(-3.0, 3.0, outputs)
    out = product(x, weight, kind, bias=start)
    exact = x.double() @ weight.double().T + start
    slack = 1e-5 * (x.double().abs() @ weight.double().abs().T + 3.0)
    ulp = 2**-8 if dtype == torch.bfloat16 else 2**-23
    assert bool(((out.double() - exact).abs() <= exact.abs() * ulp + slack).all())


@EVERY_KIND
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_a_plain_weight_gives_the_bits_of_one_in_panels(
    outputs: int, inputs: int, kind: Any, dtype: torch.dtype
) -> None:
    x, weight = normal(13, inputs, seed=1, dtype=dtype), normal(outputs, inputs, seed=2, dtype=dtype)
    assert torch.equal(product(x, weight, kind, plain=True), product(x, weight, kind))


@pytest.mark.parametrize("rows", [1, 7, 13])
def test_fma32_is_one_chain_over_ascending_inputs(rows: int) -> None:
    if not products.available("fma32", bfloat16=True):
        pytest.skip("no fma32 on this processor")
    x, weight = normal(rows, 96, seed=1), normal(40, 96, seed=2)
    bias = torch.linspace(-3.0, 3.0, 40)
    wide = product(x.float(), weight.float(), "fma32", bias=bias)
    assert torch.equal(wide, chain(x, weight, bias))
    assert torch.equal(product(x, weight, "fma32", bias=bias), wide.bfloat16())


@EVERY_KIND
def test_rows_do_not_change_each_other(kind: Any, dtype: torch.dtype) -> None:
    x, weight = normal(205, 96, seed=1, dtype=dtype), normal(130, 96, seed=2, dtype=dtype)
    together = product(x, weight, kind)
    for first, last in ((0, 1), (1, 3), (3, 14), (14, 44), (44, 205)):
        assert torch.equal(product(x[first:last], weight, kind), together[first:last])


@EVERY_KIND
def test_the_number_of_threads_changes_no_bit(kind: Any, dtype: torch.dtype) -> None:
    x, weight = normal(9, 96, seed=1, dtype=dtype), normal(330, 96, seed=2, dtype=dtype)
    expected, threads = product(x, weight, kind), numba.get_num_threads()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            assert torch.equal(product(x, weight, kind), expected)
    finally:
        numba.set_num_threads(threads)


@EVERY_KIND
def test_a_row_of_nans_spoils_no_other(kind: Any, dtype: torch.dtype) -> None:
    x, weight = normal(6, 64, seed=1, dtype=dtype), normal(70, 64, seed=2, dtype=dtype)
    x[2] = torch.nan
    out = product(x, weight, kind)
    assert bool(out[2].isnan().all())
    assert not bool(out[[0, 1, 3, 4, 5]].isnan().any())


def test_shapes_that_do_not_fit_are_refused() -> None:
    out, x = np.zeros((2, 64), np.float32), np.zeros((2, 8), np.float32)
    panels = products.pack(np.zeros((64, 8), np.float32), "fma32")
    start = products.starts(None, 64, "fma32")
    for bad in (
        (out[:1], x, panels, start),
        (out, np.zeros((2, 5), np.float32), panels, start),
        (out, x, panels[:1], start),
        (out, x, panels, start[:-1]),
        (out, x, np.zeros((60, 8), np.float32), start),
    ):
        with pytest.raises(ValueError, match="start values"):
            products.multiply(*bad, kind="fma32")


PROGRAM = """
import hashlib, torch
from seedtune.engines.transformers.cpu_kernels import products
from seedtune.numerics.machine import processor
from seedtune.engines.transformers.members.population_linear import bits
digest = hashlib.sha256()
for dtype in (torch.bfloat16, torch.float32):
    for rows, outputs, inputs in ((1, 100, 61), (7, 64, 128), (40, 33, 300)):
        source = torch.Generator().manual_seed(rows)
        x, w = (torch.randn(n, inputs, generator=source).to(dtype) for n in (rows, outputs))
        out = torch.empty(rows, outputs, dtype=dtype)
        start = products.starts(None, outputs, "fma32")
        products.multiply(bits(out), bits(x), products.pack(bits(w), "fma32"), start, kind="fma32")
        digest.update(bits(out).tobytes())
print(processor.vector_name(), digest.hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(processor.vector_name() not in ("AVX-512", "AVX512-BF16"), reason="one vector width only")
def test_code_for_avx2_and_for_avx512_gives_the_same_bits() -> None:
    def run(**more: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], env={**os.environ, **more}, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    narrow, wide = run(**AVX2), run()
    assert narrow[0] == "AVX2"
    assert wide[0] != "AVX2"
    assert narrow[1] == wide[1] != hashlib.sha256().hexdigest()


@EVERY_KIND
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("copied", [False, True], ids=["in-place", "copied"])
@pytest.mark.parametrize("shape", [(5, 96), (1, 5, 96), (0, 96)])
@torch.no_grad()
def test_a_live_weight_gives_the_librarys_product(
    bias: bool, copied: bool, shape: tuple[int, ...], kind: Any, dtype: torch.dtype
) -> None:
    own = normal(192, seed=4, dtype=dtype) if bias else None
    x, weight = normal(*shape, seed=1, dtype=dtype), normal(192, 96, seed=2, dtype=dtype)
    found, expected = [], []
    for live, seen in ((LiveWeight(ProductForm(kind, copied)), found), (LiveWeight(ProductForm()), expected)):
        live.set(weight, own)
        seen.append(live(x))
    assert found[0].shape == expected[0].shape
    torch.testing.assert_close(found[0], expected[0], atol=1e-2, rtol=2**-7)


@EVERY_KIND
@torch.no_grad()
def test_a_weight_set_anew_is_the_one_multiplied(kind: Any, dtype: torch.dtype) -> None:
    live, x = LiveWeight(ProductForm(kind, True)), normal(3, 96, seed=1, dtype=dtype)
    live.set(normal(192, 96, seed=2, dtype=dtype))
    first = live(x)
    live.set(-normal(192, 96, seed=2, dtype=dtype))
    assert torch.equal(live(x), -first)
