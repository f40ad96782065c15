"""The probe of products informs and warns; what it finds decides nothing."""

from __future__ import annotations

import logging

import pytest
import torch

from seedtune.engines.transformers import product_speed
from seedtune.engines.transformers.cpu_kernels import products
from seedtune.engines.transformers.members.population_linear import ProductForm

FMA = ProductForm("fma32", True)
needs_fma = pytest.mark.skipif(not products.available("fma32", bfloat16=False), reason="no fma32 on this processor")


@pytest.fixture(autouse=True)
def forget() -> None:
    product_speed._measured.cache_clear()


@needs_fma
def test_it_measures_the_two_largest_shapes() -> None:
    seen: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product_speed, "_times", lambda forms, shapes, dtype: seen.extend(shapes))
        assert product_speed.measured(FMA, [(8, 8), (64, 32), (9000, 5000), (64, 32)], torch.float32) is None
    assert seen == [(64, 32), (product_speed.MOST_OUTPUTS, product_speed.MOST_INPUTS)]


@needs_fma
def test_a_speed_is_work_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_speed, "_seconds", lambda live, x: 1e-3 * x.shape[0])
    found = product_speed.measured(FMA, [(64, 32)], torch.float32)
    assert found == pytest.approx(2 * 128 * 64 * 32 / 0.128 / 1e9)


@needs_fma
@pytest.mark.parametrize(("ratio", "warned"), [(1.2, False), (1.5, True)])
def test_a_faster_library_is_named_with_its_setting(
    ratio: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slow = {"fma32": ratio, "library": 1.0}
    monkeypatch.setattr(product_speed, "_seconds", lambda live, x: slow[live.form.kind])
    with caplog.at_level(logging.WARNING, "seedtune"):
        assert product_speed.measured(FMA, [(64, 32)], torch.float32) is not None
        assert caplog.messages == []
        assert product_speed.measured(FMA, [(512, 256)], torch.float32) is not None
        product_speed.measured(FMA, [(512, 256)], torch.float32)
    assert [("products=library" in text) for text in caplog.messages] == [True] * warned


@needs_fma
def test_when_time_is_over_nothing_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(product_speed, "SECONDS", -1.0)
    assert product_speed.measured(FMA, [(64, 32)], torch.float32) is None
    assert caplog.messages == []
