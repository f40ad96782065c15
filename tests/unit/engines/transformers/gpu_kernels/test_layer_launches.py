"""A decode step's launches, in Triton's interpreter (or on a GPU): what plain torch computes in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from models import DEVICE
from seedtune.engines.transformers.cpu_kernels.attention import AttentionOptions
from seedtune.engines.transformers.gpu_kernels import layer_launches
from seedtune.engines.transformers.gpu_kernels.layer_launches import Further, HeadNorms

OFF = {torch.float32: 2e-5, torch.float16: 4e-3}
DTYPES = pytest.mark.parametrize("dtype", OFF)


def normals(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))
    return values.to(dtype).to(DEVICE)


def members(rows: int, width: int, dtype: torch.dtype, parts: int, rank: int) -> Further:
    """Three pairs; one row is unperturbed."""
    pairs = torch.arange(rows) % 3
    scales = torch.linspace(-0.5, 0.5, rows)
    scales[1] = 0.0
    return Further(normals(3, parts, rank, width, dtype=dtype), pairs.to(DEVICE), scales.to(DEVICE))


def check(out: Tensor, inputs: Tensor, further: Further | None, dtype: torch.dtype) -> None:
    """Inputs, then each part's dots in the columns of the row's own pair, then zeros."""
    width = inputs.shape[1]
    torch.testing.assert_close(out[:, :width].double(), inputs.double(), atol=OFF[dtype], rtol=OFF[dtype])
    if further is None:
        assert out.shape[1] == width
        return
    _, parts, rank, _ = further.b.shape
    given = out[:, :width].double()
    expected = torch.zeros(len(out), parts, 3, rank, dtype=torch.float64, device=out.device)
    for row, (pair, scale) in enumerate(zip(further.pairs.tolist(), further.scales.tolist(), strict=True)):
        expected[row, :, pair] = scale * (further.b[pair].double() @ given[row])
    found = out[:, width:].double()
    assert found.shape[1] % 8 == 0
    torch.testing.assert_close(found[:, : parts * 3 * rank], expected.flatten(1), atol=20 * OFF[dtype], rtol=OFF[dtype])
    assert not found[:, parts * 3 * rank :].any()


@DTYPES
@pytest.mark.parametrize(("parts", "rank", "width"), [(3, 1, 48), (2, 2, 100), (1, 3, 1500), (0, 0, 70)])
def test_norms_and_the_members_further_inputs(parts: int, rank: int, width: int, dtype: torch.dtype) -> None:
    x, weight = normals(5, width, dtype=dtype), normals(width, dtype=dtype)
    further = members(5, width, dtype, parts, rank) if parts else None
    wide = x.double()
    expected = weight.double() * wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    check(layer_launches.norm(x, weight, 1e-5, further), expected, further, dtype)


@DTYPES
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_gates_and_the_members_further_inputs(rank: int, dtype: torch.dtype) -> None:
    x = normals(4, 2 * 70, dtype=dtype)
    further = members(4, 70, dtype, 1, rank) if rank else None
    first, second = x.double().chunk(2, -1)
    check(layer_launches.gate(x, further), torch.nn.functional.silu(first) * second, further, dtype)


@DTYPES
def test_further_inputs_of_inputs_that_are_there(dtype: torch.dtype) -> None:
    further = members(4, 40, dtype, 1, 2)
    inputs = normals(4, 40, dtype=dtype)
    out = layer_launches.buffer(inputs, 4, 40, further)
    out.fill_(torch.nan)
    out[:, :40] = inputs
    layer_launches.add_further(out, 40, further)
    check(out, inputs, further, dtype)
    layer_launches.add_further(out, 40, None)
    check(out, inputs, further, dtype)


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight.double() * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


@DTYPES
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dim", [16, 24])
def test_heads_are_normed_turned_and_written_where_they_belong(dim: int, normed: bool, dtype: torch.dtype) -> None:
    rows, heads, kv_heads, time = 3, 4, 2, 9
    qkv = normals(rows, (heads + 2 * kv_heads) * dim, dtype=dtype)
    angles = normals(rows, dim // 2).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    norms = HeadNorms(normals(dim, dtype=dtype), normals(dim, dtype=dtype, seed=1), 1e-6) if normed else None
    keys = torch.zeros(4, kv_heads, dim, time, dtype=dtype, device=DEVICE)
    values = torch.zeros(4, kv_heads, time, dim, dtype=dtype, device=DEVICE)
    places = torch.tensor([0, 8, 3], device=DEVICE)
    q = layer_launches.turn_and_append(qkv, (cos, sin), norms, (keys, values), places, heads=heads)
    whole = qkv.double().view(rows, -1, dim)
    turning = whole[:, : heads + kv_heads]
    if norms is not None:
        own = torch.stack([norms.queries] * heads + [norms.keys] * kv_heads)
        turning = rms(turning, own, norms.eps)
    other = torch.cat([-turning[..., dim // 2 :], turning[..., : dim // 2]], -1)
    turned = turning * cos.double()[:, None] + other * sin.double()[:, None]
    near: dict[str, Any] = {"atol": 4 * OFF[dtype], "rtol": OFF[dtype]}
    torch.testing.assert_close(q.double(), turned[:, :heads], **near)
    for row, place in enumerate(places.tolist()):
        torch.testing.assert_close(keys[row, :, :, place].double(), turned[row, heads:], **near)
        assert torch.equal(values[row, :, place], qkv.view(rows, -1, dim)[row, heads + kv_heads :])
        keys[row, :, :, place] = values[row, :, place] = 0
    assert not keys.any()
    assert not values.any()


def test_values_of_a_broken_member_are_kept_finite() -> None:
    qkv = torch.ones(1, 3 * 16, device=DEVICE)
    qkv[0, 32:36] = torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0])
    keys, values = torch.zeros(1, 1, 16, 2, device=DEVICE), torch.zeros(1, 1, 2, 16, device=DEVICE)
    turn = torch.ones(1, 16, device=DEVICE), torch.zeros(1, 16, device=DEVICE)
    layer_launches.turn_and_append(qkv, turn, None, (keys, values), torch.tensor([1], device=DEVICE), heads=1)
    assert torch.equal(values[0, 0, 1, :4], torch.nan_to_num(qkv[0, 32:36]))


@DTYPES
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (5, 0.0), (70, 2.0)])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (3, 1, 24)])
def test_attention_is_that_of_every_slots_own_past(
    heads: int, kv_heads: int, dim: int, window: int, softcap: float, dtype: torch.dtype
) -> None:
    """Also for a slot of one position, and with rubbish behind the filled ones."""
    places, time = torch.tensor([0, 89, 63, 64], device=DEVICE), 96
    q, width = normals(4, heads, dim, dtype=dtype), heads * dim
    keys, values = normals(5, kv_heads, dim, time, dtype=dtype), normals(5, kv_heads, time, dim, dtype=dtype)
    for row, place in enumerate(places.tolist()):
        keys[row, :, :, place + 1 :], values[row, :, place + 1 :] = torch.nan, 1e4
    out = torch.full((4, width + 8), 7.0, dtype=dtype, device=DEVICE)
    options = AttentionOptions(1 / math.sqrt(dim), window, softcap)
    layer_launches.attend(out, q, (keys, values), places, options)
    assert (out[:, width:] == 7.0).all()
    for row, place in enumerate(places.tolist()):
        first = max(0, place + 1 - window) if window else 0
        k, v = keys[row, :, :, first : place + 1].double(), values[row, :, first : place + 1].double()
        scores = q[row].double().view(kv_heads, -1, dim) @ k * options.scaling
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        expected = (scores.softmax(-1) @ v).reshape(width)
        torch.testing.assert_close(out[row, :width].double(), expected, atol=4 * OFF[dtype], rtol=OFF[dtype])
