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

_ROWS = 16
"""Rows sampled at once: limits the float64 cumulative sums to 16 vocabularies."""


def draws(sampling: Sampling, prompt: Prompt, sample: int) -> np.ndarray | None:
    """Return (max_tokens,) uniforms in [0, 1) of one completion, distinct per turn, or None for greedy decoding."""
    if sampling.temperature == 0.0:
        return None
    turn = f" {prompt.turn}" if prompt.turn else ""
    key = noise.key_for(sampling.seed, noise.Purpose.SAMPLING, f"{prompt.id}{turn}")
    address = noise.Address(key, noise.Stream.SAMPLING, sampling.generation, prompt.sample + sample)
    return noise.uniforms(address, 0, sampling.max_tokens)


def choose(logits: Tensor, sampling: Sampling, uniforms: np.ndarray | None) -> list[int]:
    """Choose one token per row of logits (rows, vocabulary); ``uniforms`` (rows,) are used above temperature 0."""
    if sampling.temperature == 0.0:
        return _largest(logits)
    assert uniforms is not None
    if logits.device.type == "mps":
        logits = logits.cpu()  # an Apple GPU has no float64; its memory is the CPU's
    points = torch.from_numpy(uniforms).to(logits.device)
    parts = zip(logits.split(_ROWS), points.split(_ROWS), strict=True)
    found = [_sample(rows.double() / sampling.temperature, sampling.top_p, u) for rows, u in parts]
    tokens: list[int] = torch.cat(found).tolist()
    return tokens


def _largest(logits: Tensor) -> list[int]:
    if has_kernels(logits.device, logits.dtype):
        return reductions.largest(bits(logits.contiguous()))
    found: list[int] = logits.max(-1).indices.tolist()
    return found


def _sample(logits: Tensor, top_p: float, points: Tensor) -> Tensor:
    """Sample a token a row by the inverse CDF over tokens in order of falling probability, cut after mass ``top_p``."""
    masses, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = masses.cumsum(-1)
    # At least one, even if a broken member's logits are NaN and all comparisons fail.
    kept = (cumulative - masses < top_p).sum(-1, keepdim=True).clamp(min=1)
    total = cumulative.gather(-1, kept - 1)
    places = torch.searchsorted(cumulative, points[:, None] * total, right=True)
    return order.gather(-1, places.minimum(kept - 1))[:, 0]
