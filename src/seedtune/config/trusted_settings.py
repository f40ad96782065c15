"""Settings that only the user of this machine may give, never a file from elsewhere (a pack, another's run folder).

They run code, open or write files, or contact hosts.  Everything else is numbers and words from closed lists, names of
columns, texts for the model, and the base model's name, from which weights are loaded without code.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OBJECTS, DatasetSettings, RewardSettings
from seedtune.config.foreign_data import parse_scalar
from seedtune.errors import ConfigError

_LONGEST = 3000
"""Characters of a value that an error message repeats."""


def _no_task_of_a_file(name: str) -> bool:
    return ":" not in name or name.startswith("reasoning_gym:")


def _no_text(value: Any) -> bool:
    """Return whether nested data hold no text, which may name a file or a data set."""
    if isinstance(value, Mapping):
        return all(map(_no_text, value.values()))
    return all(map(_no_text, value)) if isinstance(value, list | tuple) else not isinstance(value, str)


def _no_data(settings: DatasetSettings | dict[str, DatasetSettings] | None) -> bool:
    if isinstance(settings, dict):
        return all(map(_no_data, settings.values()))
    return settings is None or settings.path == OBJECTS


def _no_code_of_rewards(rewards: tuple[RewardSettings, ...]) -> bool:
    """Return whether every reward is a Python object of the user's program or reasoning-gym's own scorer."""
    return all(
        reward.path == OBJECTS or (reward.path is None and reward.judge is None and reward.classifier is None)
        for reward in rewards
    )


def _no_code_of_environments(given: str | dict[str, str] | None) -> bool:
    names = given.values() if isinstance(given, dict) else [given or OBJECTS]
    return all(name == OBJECTS or not {":", ".", "/"} & set(name) for name in names)


ONLY_TRUSTED: dict[str, Callable[[Any], bool]] = {
    "trust_remote_code": lambda value: not value,
    "task": _no_task_of_a_file,
    "task_args": _no_text,
    "eval_tasks": lambda names: all(map(_no_task_of_a_file, names)),
    "environment": _no_code_of_environments,
    "reward_funcs": _no_code_of_rewards,
    "train_dataset": _no_data,
    "eval_dataset": _no_data,
    "report_to": lambda names: {*names} <= {"tensorboard"},
    "transformers.weights_folder": lambda folder: folder is None,
    "ray.address": lambda address: address is None,
    "ray.detached": lambda detached: not detached,
    "ray.resources": lambda resources: resources.keys() <= {"CPU", "GPU"},
}
"""Setting → whether a value is harmless.  Options of vLLM that seedtune does not declare belong here, too."""


def of(config: Config) -> dict[str, Any]:
    """Return the values of a configuration, by dotted name, that only the user may give."""
    data = config.model_dump(mode="json", exclude_defaults=True)
    found = {}
    for name, is_harmless in ONLY_TRUSTED.items():
        section, dot, key = name.rpartition(".")
        owner = getattr(config, section) if dot else config
        if not is_harmless(getattr(owner, key)):
            found[name] = data[section][key] if dot else data[key]
    return found | {f"vllm.{name}": data["vllm"][name] for name in config.vllm.model_extra or {}}


def without(config: Config) -> Config:
    """Return the configuration with these settings at their defaults.

    A task from a file becomes ``custom``, without data or rewards.
    """
    data, names = config.model_dump(), of(config)
    for name in names:
        section, dot, key = name.rpartition(".")
        del (data[section] if dot else data)[key]
    return Config.create(data) if names else config


def not_given(config: Config, sets: Iterable[str]) -> dict[str, Any]:
    """Return the settings of `of` that ``sets`` do not give whole: a part of a section would be without the rest."""
    keys = {item.partition("=")[0].strip() for item in sets}
    return {name: value for name, value in of(config).items() if not keys & {name, name.partition(".")[0]}}


def check_given(config: Config, sets: Iterable[str], *, source: str, command: str) -> None:
    """Raise ConfigError if ``config``, read from ``source``, holds such settings that are not among ``sets``."""
    if left := not_given(config, sets):
        raise ConfigError(
            f"{source} was not written by you on this machine, or was edited since, and names what runs code, opens "
            f"files or contacts hosts: {', '.join(left)}. Read it; what you trust, give yourself: {command} "
            + " ".join(f"--set {shlex.quote(f'{name}={_shown(value)}')}" for name, value in left.items())
        )


def _shown(value: Any) -> str:
    plain = isinstance(value, str) and isinstance(parse_scalar(value), str) and not value.startswith(('"', "'"))
    text = value if plain else json.dumps(value, ensure_ascii=False)  # YAML has no pairs of surrogates
    return text if len(text) <= _LONGEST and text.isprintable() else "…"
