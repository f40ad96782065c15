"""Patterns of tensor names: what they choose, and what they refuse."""

from __future__ import annotations

import pytest

from seedtune.errors import ConfigError
from seedtune.numerics.trainable import select

NAMES = ["embed.weight", "layers.0.q.weight", "layers.0.norm.weight", "layers.1.q.weight"]


def test_everything_trains_by_default_in_the_models_order() -> None:
    assert select(NAMES, ("*",), ()) == NAMES


def test_freeze_wins_over_trainable() -> None:
    assert select(NAMES, ("layers.*",), ("*norm*",)) == ["layers.0.q.weight", "layers.1.q.weight"]


def test_a_misspelt_pattern_names_the_nearest_tensor() -> None:
    with pytest.raises(ConfigError, match=r"freeze: the pattern 'embed.wieght' matches none.*embed\.weight"):
        select(NAMES, ("*",), ("embed.wieght",))


def test_a_selection_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no tensor to train"):
        select(NAMES, ("embed*",), ("embed*",))
