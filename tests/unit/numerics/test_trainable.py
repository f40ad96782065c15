"""Patterns of tensor names: what they choose, and what they refuse."""

from __future__ import annotations

import pytest

from seedtune.errors import ConfigError
from seedtune.numerics.trainable import select

NAMES = ["embed.weight", "layers.0.q.weight", "layers.0.norm.weight", "layers.1.q.weight"]


def test_everything_trains_by_default_in_the_models_order() -> None:
    assert select(NAMES, ("*",)) == NAMES


def test_the_tensors_of_many_experts_are_chosen_in_the_time_of_one_look_at_each() -> None:
    names = [f"layers.{layer}.experts.{expert}.up.weight" for layer in range(48) for expert in range(400)]
    assert select(names, ("*",)) == names


def test_a_pattern_with_an_exclamation_mark_wins() -> None:
    assert select(NAMES, ("layers.*", "!*norm*")) == ["layers.0.q.weight", "layers.1.q.weight"]


def test_patterns_with_an_exclamation_mark_alone_leave_all_the_rest() -> None:
    assert select(NAMES, ("!*norm*", "!embed*")) == ["layers.0.q.weight", "layers.1.q.weight"]


def test_a_misspelt_pattern_names_the_nearest_tensor() -> None:
    with pytest.raises(ConfigError, match=r"trainable: the pattern '!embed.wieght' matches none.*embed\.weight"):
        select(NAMES, ("*", "!embed.wieght"))


def test_a_selection_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no tensor to train"):
        select(NAMES, ("embed*", "!embed*"))
