"""Choose tokens: greedy, or by draws that are a function of (seed, generation, prompt, sample, position).

The draws do not depend on the member, so members differ by their weights alone (common random numbers).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seedtune.engines.transformers.cpu_kernels import reductions
from seedtune.engines.transformers.device import has_kernels
from seedtune.engines.transformers.members.population_linear import bits
from seedtune.numerics import noise
from seedtune.types import Prompt, Sampling

_ROWS = 128
"""Rows sampled at once without compiled kernels: limits the cumulative sums to so many vocabularies."""


def draws(sampling: Sampling, prompt: Prompt, sample: int) -> np.ndarray | None:
    """Return (max_tokens,) uniforms in [0, 1) of one completion, distinct per turn, or None for greedy decoding."""
    if sampling.temperature == 0.0:
        return None
    turn = f" {prompt.turn}" if prompt.turn else ""
    key = noise.key_for(sampling.seed, noise.Purpose.SAMPLING, f"{prompt.id}{turn}")
    address = noise.Address(key, noise.Stream.SAMPLING, sampling.generation, prompt.sample + sample)
    return noise.uniforms(address, 0, sampling.max_tokens)


def choose(logits: Tensor, sampling: Sampling, points: Tensor | None) -> Tensor:
    """Choose one token per row of logits (rows, vocabulary), (rows,) int64 on their device, without waiting for it.

    ``points`` (rows,) float32 in [0, 1] are used above temperature 0, by inverse CDF over the tokens in order of their
    ids; equal points choose equal tokens for members whose chances are alike.
    """
    compiled = has_kernels(logits.device, logits.dtype)
    if sampling.temperature == 0.0:
        return torch.from_numpy(reductions.largest(bits(logits.contiguous()))) if compiled else logits.argmax(-1)
    assert points is not None
    options = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if compiled:
        return torch.from_numpy(reductions.drawn(bits(logits.contiguous()), points.numpy(), **options))
    parts = zip(logits.split(_ROWS), points.split(_ROWS), strict=True)
    return torch.cat([_drawn(rows.float(), at, **options) for rows, at in parts])


def _drawn(logits: Tensor, points: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """As `seedtune.engines.transformers.cpu_kernels.reductions.drawn`, in float32."""
    logits = logits.nan_to_num(nan=-torch.inf)
    masses = ((logits - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)).exp()
    if top_p < 1.0:
        masses = torch.where(masses >= _cut(masses, top_p), masses, 0.0)
    cumulative = masses.cumsum(-1)
    total = cumulative[:, -1:]
    target = (points[:, None] * total).minimum(total.nextafter(torch.zeros_like(total)))
    return (cumulative <= target).sum(-1)


def _cut(masses: Tensor, top_p: float) -> Tensor:
    """Return (rows, 1), the largest mass such that those at least as large sum to ``top_p`` of all.

    Positive floats are ordered as the integers of their bits, so 30 halvings find it; there is no sort.
    """
    wanted = masses.sum(-1, keepdim=True) * top_p
    low = torch.zeros_like(wanted).view(torch.int32)
    for bit in reversed(range(30)):
        tried = low + (1 << bit)
        enough = torch.where(masses >= tried.view(torch.float32), masses, 0.0).sum(-1, keepdim=True) >= wanted
        low = torch.where(enough, tried, low)
    return low.view(torch.float32)
