"""The compiled kernels of a decode step against plain torch, in float32 and bfloat16."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from seedtune.engines.transformers.cpu_kernels import attention, member_rows

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
"""Largest difference for results of order one; bfloat16 has eight bits of mantissa."""
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "bfloat16"])


def bits(x: Tensor) -> np.ndarray:
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Step:
    """One decode step: rows of unequal lengths in a cache with more slots than rows."""

    def __init__(
        self, lengths: list[int], *, heads: int, kv_heads: int, dims: tuple[int, int], dtype: torch.dtype
    ) -> None:
        rows, time, (dim, value_dim) = len(lengths), -(-(max(lengths) + 1) // 16) * 16, dims
        self.lengths = np.array(lengths, np.int32)
        self.q = normal(rows, heads, dim, seed=1, dtype=dtype)
        self.k = normal(rows, kv_heads, dim, seed=2, dtype=dtype)
        self.v = normal(rows, kv_heads, value_dim, seed=3, dtype=dtype)
        self.keys = normal(rows + 1, kv_heads, dim, time, seed=4, dtype=dtype)
        self.values = normal(rows + 1, kv_heads, time, value_dim, seed=5, dtype=dtype)
        for row, length in enumerate(lengths):  # what earlier rows of the slot left behind
            self.keys[row, :, :, length:] = torch.nan
            self.values[row, :, length:] = torch.nan

    def run(self, *, scaling: float = 0.3, window: int = 0, softcap: float = 0.0) -> Tensor:
        out = torch.full((*self.q.shape[:2], self.v.shape[2]), torch.nan, dtype=self.q.dtype)
        attention.decode(
            bits(out),
            bits(self.q),
            new=(bits(self.k), bits(self.v)),
            cache=(bits(self.keys), bits(self.values)),
            lengths=self.lengths,
            options=attention.AttentionOptions(scaling, window, softcap),
        )
        return out.float()

    def expected(self, *, scaling: float = 0.3, window: int = 0, softcap: float = 0.0) -> Tensor:
        return torch.stack([self._row(i, scaling, window, softcap) for i in range(len(self.lengths))])

    def _row(self, i: int, scaling: float, window: int, softcap: float) -> Tensor:
        now, group = int(self.lengths[i]), self.q.shape[1] // self.k.shape[1]
        first = max(0, now + 1 - window) if window else 0
        keys = torch.cat([self.keys[i, :, :, :now], self.k[i, :, :, None]], 2)[:, :, first:].float()
        values = torch.cat([self.values[i, :, :now], self.v[i, :, None]], 1)[:, first:].float()
        scores = (self.q[i].float()[:, None] @ keys.repeat_interleave(group, 0)) * scaling
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        return (scores.softmax(-1) @ values.repeat_interleave(group, 0))[:, 0]


LENGTHS = [0, 1, 15, 16, 17, 47, 48, 49, 63, 64, 70, 200]


@DTYPES
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (3, 1)])
def test_decode_attends_to_each_rows_own_past(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    step = Step(LENGTHS, heads=heads, kv_heads=kv_heads, dims=(32, 32), dtype=dtype)
    expected = step.expected()
    torch.testing.assert_close(step.run(), expected, atol=TOLERANCE[dtype], rtol=0)


@DTYPES
@pytest.mark.parametrize("dims", [(16, 16), (80, 80), (64, 128), (112, 48), (96, 64)])
def test_decode_takes_any_head_width_of_sixteens(dims: tuple[int, int], dtype: torch.dtype) -> None:
    step = Step([3, 30, 65], heads=2, kv_heads=1, dims=dims, dtype=dtype)
    expected = step.expected(scaling=dims[0] ** -0.5)
    torch.testing.assert_close(step.run(scaling=dims[0] ** -0.5), expected, atol=TOLERANCE[dtype], rtol=0)


@DTYPES
@pytest.mark.parametrize("window", [1, 5, 16, 33, 64, 1000])
def test_decode_sees_the_latest_tokens_of_a_window_only(window: int, dtype: torch.dtype) -> None:
    step = Step(LENGTHS, heads=4, kv_heads=2, dims=(16, 16), dtype=dtype)
    expected = step.expected(window=window)
    torch.testing.assert_close(step.run(window=window), expected, atol=TOLERANCE[dtype], rtol=0)


@DTYPES
@pytest.mark.parametrize("window", [0, 7])
def test_decode_caps_scores_softly(window: int, dtype: torch.dtype) -> None:
    step = Step(LENGTHS, heads=4, kv_heads=2, dims=(16, 16), dtype=dtype)
    options = {"softcap": 1.5, "window": window, "scaling": 1.0}
    expected = step.expected(**options)
    assert (expected - step.expected(**{**options, "softcap": 0.0})).abs().max() > 0.1
    torch.testing.assert_close(step.run(**options), expected, atol=TOLERANCE[dtype], rtol=0)


@DTYPES
def test_decode_is_exact_about_very_unequal_scores(dtype: torch.dtype) -> None:
    step = Step([40, 63], heads=2, kv_heads=1, dims=(16, 16), dtype=dtype)
    expected = step.expected(scaling=100.0)
    torch.testing.assert_close(step.run(scaling=100.0), expected, atol=5 * TOLERANCE[dtype], rtol=0)


@DTYPES
def test_decode_writes_the_new_key_and_value_and_nothing_else(dtype: torch.dtype) -> None:
    step = Step(LENGTHS, heads=2, kv_heads=2, dims=(16, 32), dtype=dtype)
    keys, values = step.keys.clone(), step.values.clone()
    for row, length in enumerate(LENGTHS):
        keys[row, :, :, length] = step.k[row]
        values[row, :, length] = step.v[row]
    step.run()
    torch.testing.assert_close(step.keys, keys, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(step.values, values, atol=0, rtol=0, equal_nan=True)


class Prompts:
    """Three prompts in slots 1, 2 and 3: the second goes on from the first, the third repeats it."""

    PATHS = ([*range(20)], [*range(7), *range(20, 32)], [*range(20)])
    STARTS = (0, 7, 20)

    def __init__(self, *, heads: int, kv_heads: int, dims: tuple[int, int], dtype: torch.dtype) -> None:
        dim, value_dim = dims
        self.q = normal(32, heads, dim, seed=1, dtype=dtype)
        self.k = normal(32, kv_heads, dim, seed=2, dtype=dtype)
        self.v = normal(32, kv_heads, value_dim, seed=3, dtype=dtype)
        self.keys = torch.full((5, kv_heads, dim, 32), torch.nan, dtype=dtype)
        self.values = torch.full((5, kv_heads, 32, value_dim), torch.nan, dtype=dtype)

    def run(self, *, scaling: float = 0.3, window: int = 0, softcap: float = 0.0) -> Tensor:
        out = torch.full((32, self.q.shape[1], self.v.shape[2]), torch.nan, dtype=self.q.dtype)
        ends = np.cumsum([len(path) for path in self.PATHS])
        attention.prefill(
            bits(out),
            bits(self.q),
            new=(bits(self.k), bits(self.v)),
            cache=(bits(self.keys), bits(self.values)),
            prompts=attention.Prompts(1, np.concatenate(self.PATHS), ends, np.array(self.STARTS)),
            options=attention.AttentionOptions(scaling, window, softcap),
        )
        return out.float()

    def expected(self, *, scaling: float = 0.3, window: int = 0, softcap: float = 0.0) -> Tensor:
        out = torch.empty(32, self.q.shape[1], self.v.shape[2])
        group = self.q.shape[1] // self.k.shape[1]
        for path in self.PATHS:
            for now, token in enumerate(path):
                past = path[max(0, now + 1 - window) if window else 0 : now + 1]
                scores = torch.einsum("hd,thd->ht", self.q[token].float(), self._of(self.k, past, group)) * scaling
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                out[token] = torch.einsum("ht,thd->hd", scores.softmax(-1), self._of(self.v, past, group))
        return out

    def _of(self, x: Tensor, past: list[int], group: int) -> Tensor:
        return x[past].float().repeat_interleave(group, 1)


@DTYPES
@pytest.mark.parametrize("options", [{}, {"window": 5}, {"softcap": 1.5, "scaling": 1.0}], ids=["all", "window", "cap"])
@pytest.mark.parametrize(("heads", "kv_heads", "dims"), [(4, 4, (16, 16)), (6, 2, (32, 48))])
def test_prompts_attend_to_their_own_beginnings(
    heads: int, kv_heads: int, dims: tuple[int, int], options: dict[str, float], dtype: torch.dtype
) -> None:
    prompts = Prompts(heads=heads, kv_heads=kv_heads, dims=dims, dtype=dtype)
    torch.testing.assert_close(prompts.run(**options), prompts.expected(**options), atol=TOLERANCE[dtype], rtol=0)


@DTYPES
def test_prompts_fill_their_slots_and_nothing_else(dtype: torch.dtype) -> None:
    prompts = Prompts(heads=2, kv_heads=2, dims=(16, 32), dtype=dtype)
    keys, values = prompts.keys.clone(), prompts.values.clone()
    for slot, path in enumerate(prompts.PATHS, 1):
        keys[slot, :, :, : len(path)] = prompts.k[path].permute(1, 2, 0)
        values[slot, :, : len(path)] = prompts.v[path].transpose(0, 1)
    prompts.run()
    torch.testing.assert_close(prompts.keys, keys, atol=0, rtol=0, equal_nan=True)
    torch.testing.assert_close(prompts.values, values, atol=0, rtol=0, equal_nan=True)


class Lanes:
    """Rows of a fused linear layer's input and output, and the factors of three pairs."""

    def __init__(self, inputs: int, outputs: tuple[int, ...], *, rank: int, dtype: torch.dtype) -> None:
        pairs, self.ends = 3, np.cumsum(outputs).astype(np.int32)
        self.rows = np.array([2, 0, 1, 0, 2, 2, 1], np.int32)
        self.scales = np.array([0.1, -0.1, 0.0, 0.2, -0.2, 0.0, 0.1], np.float32)
        self.x = normal(7, inputs, seed=1, dtype=dtype)
        self.y = normal(7, sum(outputs), seed=2, dtype=dtype)
        self.a = normal(pairs, rank, sum(outputs), seed=3, dtype=dtype)
        self.b = normal(pairs, len(outputs), rank, inputs, seed=4, dtype=dtype)

    def run(self) -> Tensor:
        y = self.y.clone()
        member_rows.add_lowrank(
            bits(y),
            bits(self.x),
            a=bits(self.a),
            b=bits(self.b),
            ends=self.ends,
            pairs=self.rows,
            scales=self.scales,
        )
        return y

    def expected(self) -> Tensor:
        y, first = self.y.double(), 0
        for part, end in enumerate(self.ends.tolist()):
            for i, (pair, scale) in enumerate(zip(self.rows, self.scales, strict=True)):
                dots = self.b[pair, part].double() @ self.x[i].double()
                y[i, first:end] += float(scale) * dots @ self.a[pair, :, first:end].double()
            first = end
        return y.float()


SIZES = pytest.mark.parametrize(("inputs", "outputs"), [(1, (1,)), (16, (16,)), (33, (7, 5, 31)), (257, (100, 3))])


@DTYPES
@SIZES
@pytest.mark.parametrize("rank", [1, 2, 4, 7])
def test_add_rows_adds_each_rows_own_pair(inputs: int, outputs: tuple[int, ...], rank: int, dtype: torch.dtype) -> None:
    these = Lanes(inputs, outputs, rank=rank, dtype=dtype)
    relative = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]  # one rounding of the sum
    expected = these.expected()
    torch.testing.assert_close(these.run().float(), expected, atol=1e-4, rtol=relative)
    assert (expected - these.y.float()).abs().max() > 0.05


@DTYPES
@SIZES
@pytest.mark.parametrize("rank", [1, 4])
def test_add_rows_leaves_unperturbed_rows_untouched(
    inputs: int, outputs: tuple[int, ...], rank: int, dtype: torch.dtype
) -> None:
    these = Lanes(inputs, outputs, rank=rank, dtype=dtype)
    done, unperturbed = these.run(), these.scales == 0.0
    assert torch.equal(done[unperturbed], these.y[unperturbed])


@DTYPES
@pytest.mark.parametrize("rank", [1, 3])
def test_add_rows_gives_a_row_the_same_bits_in_any_batch(rank: int, dtype: torch.dtype) -> None:
    these = Lanes(65, (40, 9), rank=rank, dtype=dtype)
    together = these.run()
    for row in range(7):
        alone = Lanes(65, (40, 9), rank=rank, dtype=dtype)
        keep = slice(row, row + 1)
        alone.x, alone.y = these.x[keep], these.y[keep]
        alone.rows, alone.scales = these.rows[keep], these.scales[keep]
        assert torch.equal(alone.run()[0], together[row])
