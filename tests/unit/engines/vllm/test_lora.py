"""Adapters of a wave are drawn together, once; each is what it is alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seedtune.engines.vllm import compat, lora
from seedtune.engines.vllm.lora import LoraMaker, name_of
from seedtune.numerics.noise import Noise
from seedtune.numerics.weights import Weights
from seedtune.types import UNPERTURBED, Member

MEMBERS = (Member(1, 0, 1), Member(1, 0, -1), Member(1, 2, 1))


def maker() -> LoraMaker:
    tensors = {f"{name}.weight": np.zeros((4, 6), np.float32) for name in "ab"}
    return LoraMaker(Weights(tensors, Noise(7, rank=2)), torch.float32)


def made(loras: LoraMaker, member: Member) -> dict[str, tuple[Any, Any]]:
    return {name: (a.tolist(), b.tolist()) for name, (a, b) in loras.make(1, name_of(member, 0.1)).items()}


def test_a_wave_is_drawn_once_and_reused_noise_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "lora_model", lambda _number, _rank, layers: layers)
    alone = [made(maker(), member) for member in MEMBERS]
    drawn: list[str] = []
    factors = lora.factors

    def counted(weights: Weights, name: str, pairs: Any) -> Any:
        drawn.append(name)
        return factors(weights, name, pairs)

    monkeypatch.setattr(lora, "factors", counted)
    together = maker()
    for _ in range(2):
        together.draw([(1, 0), (1, 2)])
        assert [made(together, member) for member in MEMBERS] == alone
        assert not any(np.any(factor) for layer in made(together, UNPERTURBED).values() for factor in layer)
    assert drawn == ["a.weight", "b.weight"]
    together.draw([(2, 0)])
    assert drawn == ["a.weight", "b.weight"] * 2
