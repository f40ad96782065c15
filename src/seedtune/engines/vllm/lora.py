"""Members as LoRA adapters: A·Bᵀ/√r beside the base weights, drawn in the worker from the member's name.

An adapter is identified by its address, so it is created wherever it is requested, again if it was dropped, and kept
while noise is reused; it does not depend on the current weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from seedtune.engines.transformers.members.weight_format import as_tensor
from seedtune.engines.vllm import compat
from seedtune.numerics.noise import amplitude
from seedtune.numerics.weights import Weights, factors
from seedtune.types import Member


def name_of(member: Member, sigma: float) -> str:
    """Return a member's name, which encodes everything that its adapter depends on."""
    return f"{member.generation}:{member.pair}:{member.sign}:{sigma.hex()}"


def parse(name: str) -> tuple[Member, float]:
    """Return the member and σ that a name encodes."""
    generation, pair, sign, sigma = name.split(":")
    return Member(int(generation), int(pair), int(sign)), float.fromhex(sigma)


class LoraMaker:
    """Creates LoRA adapters for linear weights, whose values do not matter."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype
        self._columns: dict[tuple[int, int], int] = {}
        self._drawn: dict[str, tuple[Any, Any]] = {}

    def draw(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Draw the factors of these (generation, pair) at once, for the adapters that are asked for next.

        If all of them are there still, as where noise is reused, nothing is drawn.
        """
        if self._columns.keys() >= set(pairs):
            return
        self._columns = {pair: column for column, pair in enumerate(pairs)}
        self._drawn = {tensor: factors(self._weights, tensor, pairs) for tensor in self._weights.tensors}

    def make(self, number: int, name: str) -> Any:
        """Return a member's adapter in vLLM's form: x → s·σ·A(Bᵀx)/√r for every weight."""
        member, sigma = parse(name)
        noise = self._weights.noise
        scale = np.float32(member.sign * amplitude(sigma, rank=noise.rank, subspaces=noise.subspaces))
        made = {}
        for tensor in self._weights.tensors:
            left, right = self._factors(tensor, member)
            inputs, outputs = right.T.contiguous(), left * float(scale)
            made[tensor.removesuffix(".weight")] = inputs.to(self._dtype), outputs.to(self._dtype)
        return compat.lora_model(number, noise.rank, made)

    def _factors(self, tensor: str, member: Member) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a member's A (outputs, r) and B (inputs, r); zeros for the unperturbed model, which draws nothing."""
        if not member.sign:
            own, rank = self._weights.slices[tensor], self._weights.noise.rank
            return torch.zeros(own.rows.whole, rank), torch.zeros(own.columns.whole, rank)
        pair = member.generation, member.pair
        self.draw([pair])
        left, right = (as_tensor(drawn)[self._columns[pair]] for drawn in self._drawn[tensor])
        return left, right
