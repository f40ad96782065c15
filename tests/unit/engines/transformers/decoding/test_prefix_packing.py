"""Packed prompts: prompts of one member share their beginning, prompts of different members do not."""

from __future__ import annotations

import numpy as np
import torch

from seedtune.engines.transformers.decoding.prefix_packing import PrefixPack, packed
from seedtune.engines.transformers.decoding.slot_attention import Prefill

CPU = torch.device("cpu")


def pack_of(*prompts: tuple[int, list[int]]) -> PrefixPack:
    pack = packed(0, *zip(*prompts, strict=True), tokens=1000, padded=1000)
    assert len(pack.paths) == len(prompts)
    return pack


def test_prompts_of_one_member_share_what_they_begin_with() -> None:
    pack = pack_of((0, [5, 6, 7, 8]), (0, [5, 6, 9]), (0, [5, 6, 9, 4]))
    assert pack.ids == [5, 6, 7, 8, 9, 4]
    assert pack.positions == [0, 1, 2, 3, 2, 3]
    assert pack.paths == [[0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5]]
    assert pack.starts == [0, 2, 3]


def test_prompts_of_different_members_share_nothing() -> None:
    pack = pack_of((0, [5, 6]), (1, [5, 6]), (2, [5, 6]))
    assert pack.ids == [5, 6] * 3
    assert pack.members == [0, 0, 1, 1, 2, 2]
    assert pack.starts == [0, 0, 0]


def test_a_repeated_prompt_costs_nothing_and_keeps_its_own_end() -> None:
    pack = pack_of((3, [1, 2, 3]), (3, [1, 2, 3]), (3, [1, 2]))
    assert pack.ids == [1, 2, 3]
    assert pack.last() == [2, 2, 1]
    assert pack.lengths == [3, 3, 2]


def test_the_budget_counts_computed_tokens_and_takes_one_prompt_at_least() -> None:
    members, prompts = [0, 0, 0, 1], [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6], [1, 2, 3, 4]]
    assert len(packed(0, members, prompts, tokens=6, padded=1000).paths) == 3
    assert len(packed(0, members, prompts, tokens=1, padded=1000).paths) == 1
    assert len(packed(0, members, prompts, tokens=1000, padded=8).paths) == 2


def test_a_prompt_that_did_not_fit_leaves_no_trace() -> None:
    pack = packed(0, [0, 1], [[1, 2], [3, 4]], tokens=3, padded=1000)
    assert len(pack.paths) == 1
    assert pack.ids == [1, 2]
    assert pack.matched(1, [3, 4]) == []


def test_every_token_is_asked_for_once_and_its_answer_found() -> None:
    rng = np.random.default_rng(0)
    prompts = [(int(rng.integers(3)), rng.integers(0, 2, int(rng.integers(1, 9))).tolist()) for _ in range(40)]
    pack = pack_of(*prompts)
    prefill = Prefill.of(pack, CPU)
    asked = torch.cat([part.tokens for part in prefill.queries])
    assert torch.equal(asked[prefill.outputs], torch.arange(len(pack.ids)))


def test_the_keys_of_a_prompt_are_its_own_tokens_in_order() -> None:
    prompts = [(0, [5, 6, 7]), (0, [5, 8]), (1, [5])]
    pack = pack_of(*prompts)
    prefill = Prefill.of(pack, CPU)
    keys = prefill.keys.view(3, prefill.longest)
    found = [[pack.ids[token] for token in keys[row, : len(prompt)]] for row, (_, prompt) in enumerate(prompts)]
    assert found == [prompt for _, prompt in prompts]
