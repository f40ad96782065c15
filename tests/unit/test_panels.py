"""Products of few rows from panels are the library's products, and only stand in where the layout is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from seedtune.engines.transformers import linear
from seedtune.engines.transformers import panels as layout
from seedtune.engines.transformers.linear import LiveWeight, can_pack
from seedtune.kernels import panels

packing = pytest.mark.skipif(
    not can_pack(torch.bfloat16, torch.device("cpu")), reason="this processor packs no bfloat16 weights"
)
dots = pytest.mark.skipif(not panels.available(), reason="this processor has no bfloat16 dot product")


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def bits(x: Tensor) -> np.ndarray:
    return x.view(torch.uint16).numpy()


@dots
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 13, 32])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 2), (192, 96), (64, 1000)])
def test_a_product_is_the_float64_product_rounded_once(rows: int, outputs: int, inputs: int) -> None:
    x, weight = normal(rows, inputs, seed=1), normal(outputs, inputs, seed=2)
    start = torch.linspace(-3.0, 3.0, outputs)
    out = torch.full((rows, outputs), torch.nan).bfloat16()
    panels.multiply(bits(out), bits(x), layout.in_panels(bits(weight)), start.numpy())
    exact = x.double() @ weight.double().T + start
    slack = 1e-5 * (x.double().abs() @ weight.double().abs().T + 3.0)
    assert bool(((out.double() - exact).abs() <= exact.abs() * 2**-8 + slack).all())


@dots
def test_rows_do_not_change_each_other() -> None:
    x, weight, start = (
        normal(13, 96, seed=1),
        layout.in_panels(bits(normal(128, 96, seed=2))),
        np.zeros(128, np.float32),
    )
    together, alone = torch.empty(13, 128).bfloat16(), torch.empty(13, 128).bfloat16()
    panels.multiply(bits(together), bits(x), weight, start)
    for row in range(13):
        panels.multiply(bits(alone[row : row + 1]), bits(x[row : row + 1]), weight, start)
    assert torch.equal(together, alone)


@dots
def test_a_row_of_nans_spoils_no_other() -> None:
    x, weight, start = normal(6, 64, seed=1), layout.in_panels(bits(normal(64, 64, seed=2))), np.zeros(64, np.float32)
    x[2] = torch.nan
    out = torch.empty(6, 64).bfloat16()
    panels.multiply(bits(out), bits(x), weight, start)
    assert bool(out[2].isnan().all())
    assert not bool(out[[0, 1, 3, 4, 5]].isnan().any())


@pytest.mark.parametrize(("outputs", "inputs"), [(63, 4), (64, 3)])
def test_shapes_that_do_not_fill_panels_are_refused(outputs: int, inputs: int) -> None:
    out, x = np.zeros((2, outputs), np.uint16), np.zeros((2, inputs), np.uint16)
    with pytest.raises(ValueError, match="panel"):
        panels.multiply(out, x, np.zeros(outputs * inputs, np.uint16), np.zeros(outputs, np.float32))


@packing
@torch.no_grad()
@pytest.mark.parametrize("bias", [None, normal(192, seed=4)], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [(5, 96), (1, 5, 96)])
def test_few_rows_of_a_packed_weight_give_the_librarys_product(
    bias: Tensor | None, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    live, x = LiveWeight(bias, packed=True), normal(*shape, seed=1)
    live.set(normal(192, 96, seed=2))
    found = live(x)
    monkeypatch.setattr(linear, "FEW_ROWS", 0)
    expected = live(x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=2**-7)


@packing
@torch.no_grad()
def test_a_weight_set_anew_is_the_one_multiplied() -> None:
    live, x = LiveWeight(None, packed=True), normal(3, 96, seed=1)
    live.set(normal(192, 96, seed=2))
    first = live(x)
    live.set(-normal(192, 96, seed=2))
    assert torch.equal(live(x), -first)


@packing
def test_a_layout_that_is_not_panels_is_left_to_the_library() -> None:
    packed = torch.ops.mkldnn._reorder_linear_weight(normal(100, 60, seed=1), None)
    assert layout.panels_of(packed) is None


@packing
def test_a_processor_without_the_instruction_leaves_products_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = torch.ops.mkldnn._reorder_linear_weight(normal(64, 64, seed=1), None)
    monkeypatch.setattr(panels, "available", lambda: False)
    assert layout.panels_of(packed) is None
