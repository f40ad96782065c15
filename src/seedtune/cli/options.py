"""Conversion of a command's options to a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seedtune.config.config import Config
from seedtune.config.yaml_file import override, parse_value, read_settings
from seedtune.errors import ConfigError


def train_config(
    path: Path | None, given: Mapping[str, str | None], rewards: Sequence[str], sets: Sequence[str]
) -> Config:
    """Merge the file's settings, if any, the options, and ``--set``, in this order.

    Raises ConfigError if all are empty.
    """
    told: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if rewards:
        told["reward_funcs"] = [reward_of(text) for text in rewards]
    if path is None and not told and not sets:
        raise ConfigError(
            "nothing says what to train. Give a CONFIG.yaml (see examples/), or --model, --train-dataset and --reward."
        )
    settings = {} if path is None else read_settings(path)
    return Config.create(override({**settings, **told}, sets))


def reward_of(text: str) -> Any:
    """Parse a reward of the command line: plain text, or a mapping like ``{path: rewards.py:score, adapter: verl}``."""
    return parse_value(text) if text.lstrip().startswith("{") else text
