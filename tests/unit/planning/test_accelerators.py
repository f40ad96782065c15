"""Devices by name, and the arithmetic of a decode step."""

from __future__ import annotations

import json

import pytest

from seedtune.errors import ConfigError
from seedtune.planning.accelerators import MACHINES, Machine, machine_of, parse_device

PLAIN = Machine("plain", bandwidth=100.0, flops=1000.0, efficiency=0.5, launch=0.0)


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("h100", (1, "h100")), ("8xH100", (8, "h100")), (" 2 x a100-80gb", (2, "a100-80gb")), ("RTX 4090", (1, "rtx4090")),
     ("4×l40s", (4, "l40s")), ("cpu", (1, "cpu"))],
)  # fmt: skip
def test_a_device_is_a_count_and_a_name(text, parsed):
    assert parse_device(text) == parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h10", r"'h10' is not a known device. Did you mean 'h100'\? Known: cpu, t4, "),
        ("8xh1000", r"Did you mean 'h100'\?"),
        ("", "'' is not a known device"),
        ("0xh100", "asks for 0 devices. Give 1 to 1024"),
        ("2xcpu", "'cpu' is this machine. Give cpu"),
    ],
)
def test_a_device_that_is_not_known_names_the_nearest(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_device(text)


def test_few_rows_wait_for_memory_and_many_for_products():
    sizes = {"weights": 150.0, "cache": 50.0, "parameters": 100.0, "layers": 2}
    assert PLAIN.step(**sizes, rows=1) == pytest.approx(200 / 100 / 0.5)
    assert PLAIN.step(**sizes, rows=100) == pytest.approx(2 * 100 * 100 / 1000 / 0.5)


def test_a_small_model_waits_for_launches():
    slow = Machine("slow", bandwidth=1e12, flops=1e15, launch=1e-3)
    assert slow.step(weights=1e6, cache=0.0, parameters=1e6, rows=1, layers=30) == pytest.approx(0.03)


def test_prefill_and_streams_follow_their_formula():
    assert PLAIN.prefill(parameters=100.0, tokens=10.0) == pytest.approx(2 * 100 * 10 / 1000 / 0.5)
    assert PLAIN.stream(50.0) == pytest.approx(1.0)


def test_a_newer_device_is_faster_at_both():
    old, new = MACHINES["a100"], MACHINES["h200"]
    assert new.bandwidth > old.bandwidth
    assert new.flops > old.flops


def checked(folder, **changes):
    """A file of scripts/gpu-check, as it writes them."""
    env = {"device": {"value": "NVIDIA H200"}, "memory GB": {"value": 150.1}}
    ceilings = {"copy TB/s": {"value": 4.3, "note": ""}, "bf16 product TFLOP/s": {"value": 780.0}} | changes
    file = folder / "gpu-check.json"
    file.write_text(json.dumps({"steps": {"env": {"figures": env}, "ceilings": {"figures": ceilings}}}))
    return str(file)


def test_a_measured_gpu_has_its_own_rates(tmp_path):
    file = checked(tmp_path)
    assert parse_device(f"8x{file}") == (8, file)
    found = machine_of(file)
    assert (found.name, found.memory) == ("NVIDIA H200 as measured", 150.1e9)
    assert (found.bandwidth, found.flops) == pytest.approx((4.3e12, 780e12))
    assert found.efficiency > MACHINES["h200"].efficiency


def test_a_file_without_these_figures_is_named(tmp_path):
    for file in (str(tmp_path / "none.json"), checked(tmp_path, **{"copy TB/s": {"value": "failed"}})):
        with pytest.raises(ConfigError, match=r"is no file of scripts/gpu-check with the steps env and ceilings"):
            parse_device(file)
    with pytest.raises(ConfigError, match="asks for 0 devices"):
        parse_device(f"0x{checked(tmp_path)}")
