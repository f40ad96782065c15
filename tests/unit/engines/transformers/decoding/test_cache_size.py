"""How many rows and positions fit a device, and how a resumed run has those of the ledger."""

from __future__ import annotations

import pytest
import torch

from seedtune.config.config import Config
from seedtune.config.sections import TransformersSettings
from seedtune.engines.recorded_arithmetic import summary
from seedtune.engines.transformers import device
from seedtune.engines.transformers.decoding import cache_size
from seedtune.engines.transformers.decoding.cache_size import CPU, CacheSize, free_on, position_bytes, size_for
from seedtune.engines.transformers.decoding.slot_cache import SlotCache
from seedtune.engines.transformers.product_choice import ForwardArithmetic
from seedtune.run import resuming

GPU = torch.device("cuda")
QWEN = {"position": 28_672, "vocabulary": 151_936}
"""Qwen2.5-1.5B in bfloat16: 28 layers, two heads of keys and values of 128 numbers."""


@pytest.mark.parametrize(
    ("gib", "rows", "positions"), [(136, 2048, 3_355_443), (22, 883, 524_288), (6, 264, 157_286), (0.4, 17, 10_000)]
)
def test_a_gpu_takes_what_its_memory_holds(
    gib: float, rows: int, positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_size, "free_memory", lambda device: int(gib * 2**30))
    found = free_on(GPU, **QWEN)
    assert found.rows == pytest.approx(rows, rel=0.2)
    assert found.positions == pytest.approx(positions, rel=0.2)
    assert found.positions * QWEN["position"] < 0.7 * gib * 2**30


def test_a_few_bytes_more_or_less_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for free in (90_000_000_000, 90_000_000_001, 90_400_000_000, 92_000_000_000):
        monkeypatch.setattr(cache_size, "free_memory", lambda device, free=free: free)
        found.add(free_on(GPU, **QWEN))
    assert len(found) == 1


def test_free_memory_counts_what_torch_holds_without_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 600)
    assert device.free_memory(GPU) == 1100


def test_settings_go_before_memory_each_by_itself() -> None:
    free = CacheSize(2000, 10**6)
    assert size_for(TransformersSettings(), free) == free
    assert size_for(TransformersSettings(max_rows=5), free) == CacheSize(5, 10**6)
    assert size_for(TransformersSettings(max_batch_tokens=99), free) == CacheSize(2000, 99)
    assert size_for(TransformersSettings()) == CPU == free_on(torch.device("cpu"), **QWEN)


def test_rows_in_flight_share_the_positions() -> None:
    size = CacheSize(10, 1000)
    assert [size.slots(rows, longest) for rows, longest in ((4, 50), (40, 50), (40, 300), (40, 3000))] == [4, 10, 3, 1]
    assert [CacheSize(1, positions).prefill_tokens for positions in (1000, 2**17)] == [1024, 2048]


def test_a_position_takes_keys_and_values_of_every_layer() -> None:
    cache = SlotCache(2, 8, compiled=False)
    for layer, heads in enumerate((3, 1)):
        states, values = torch.zeros(1, heads, 5, 16), torch.zeros(1, heads, 5, 8)
        cache.update(states, values, layer)
        cache.layers[layer].lazy_initialization(states, values)
    assert position_bytes(cache, torch.bfloat16) == (3 + 1) * (16 + 8) * 2


def test_a_resumed_run_has_the_recorded_sizes_unless_settings_name_others() -> None:
    entry = ForwardArithmetic(
        "library", "library", "cuda sm_90", {"name": "torch", "version": "2"}, {"rows": 7, "positions": 900}
    ).to_json()
    assert entry["sizes"] == {"rows": 7, "positions": 900}
    assert summary(entry).endswith("cuda sm_90, by torch 2, 7 rows and 900 positions at most")
    config = Config(transformers={"device": "cuda", "max_rows": "auto"})
    found = resuming.as_recorded(config, entry).transformers
    assert (found.max_rows, found.max_batch_tokens, found.device) == (7, 900, "cuda")
    assert resuming.as_recorded(config, {"workers": {"transformers": entry}}).transformers == found
    own = resuming.as_recorded(Config(transformers={"max_rows": 3}), entry).transformers
    assert (own.max_rows, own.max_batch_tokens) == (3, 900)
    assert resuming.as_recorded(config, {}).transformers == config.transformers
