"""The frozen, validated configuration, from a YAML file, keyword arguments, or ``--set key=value``.

Names follow TRL where TRL has one.  ``Config.identity`` is the part that a run's results depend on: it is stored in
the ledger's header and may not change on resume; other settings (how often to save, to evaluate) may.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_serializer, field_validator, model_validator

from seedtune.config import rules
from seedtune.config.data_and_rewards import OBJECTS, as_dataset, as_environment, as_eval_datasets, as_rewards
from seedtune.config.fields import TRACKERS, Fields, one_spelling
from seedtune.config.sections import check_no_secrets, explain, none_for_auto, yes_or_no
from seedtune.config.trl_names import check_not_of_grpo
from seedtune.errors import ConfigError, suggest

SHOWN = 8
"""Most problems that one error lists."""


class Config(Fields):
    """All settings of a run.  Unknown keys are errors; all have defaults, but a run needs own data or a ``task``."""

    _words_of_yaml = field_validator("rollback_on_fall", mode="before")(yes_or_no)
    _auto = field_validator("sigma", "alpha", mode="before")(none_for_auto)
    _short_data = field_validator("train_dataset", mode="before")(as_dataset)
    _short_eval_data = field_validator("eval_dataset", mode="before")(as_eval_datasets)
    _short_environment = field_validator("environment", mode="before")(as_environment)
    _short_rewards = field_validator("reward_funcs", mode="before")(as_rewards)

    @field_validator("report_to", mode="before")
    @classmethod
    def _known_trackers(cls, value: Any) -> tuple[Any, ...]:
        """Read one tracker as a list of it, and ``none`` as none."""
        given = tuple(value) if isinstance(value, list | tuple) else () if value in (None, "none") else (value,)
        for each in given:
            if not callable(each) and each not in TRACKERS:
                known = suggest(each, TRACKERS) if isinstance(each, str) else ""
                raise ValueError(
                    f"{each!r} is no tracker.{known} Known: {', '.join(TRACKERS)}, and functions in Python"
                )
        return tuple(dict.fromkeys(given))

    @field_serializer("report_to", when_used="json")
    def _without_functions(self, value: tuple[Any, ...]) -> list[str]:
        """Leave out functions, which exist only in a Python program."""
        return [each for each in value if isinstance(each, str)]

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, data: Any) -> Any:
        """Read ``learning_rate`` as alpha."""
        if not isinstance(data, dict):
            return data
        check_no_secrets(data)
        check_not_of_grpo(data)
        return one_spelling(data)

    @model_validator(mode="after")
    def _goes_together(self) -> Config:
        rules.check(self)
        return self

    def identity(self) -> dict[str, Any]:
        """Return the settings that the results depend on, as plain JSON data.

        Ray workers with one kind of engine count as that engine, independent of their number.
        """
        data = self.model_dump(mode="json", exclude=_INCIDENTAL)
        for other in {"transformers", "vllm", "toy"} - {*self.kinds}:
            del data[other]
        data["engine"] = "+".join(self.kinds)
        data["members_per_job"] = self.group
        if self.max_staleness:
            data["max_staleness"] = self.max_staleness
        if not self.stop_token_ids:
            del data["stop_token_ids"]
        arguments = data["task_args"].items()  # a file may move
        data["task_args"] = {
            k: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v for k, v in arguments
        }
        data["task"], places = _without_folder(self.task), self.environment
        data["environment"] = (
            {name: _without_folder(place) for name, place in places.items()}
            if isinstance(places, dict)
            else places and _without_folder(places)
        )
        data["reward_funcs"] = [reward.identity() for reward in self.reward_funcs]
        data["reward_weights"] = list(self.weights)
        return data

    def sources(self) -> dict[str, Any]:
        """Return where data, rewards and code are, if in files, as plain JSON data: `identity` has no paths."""
        known = self.identity()
        given = self.model_dump(mode="json", include=_SOURCES, exclude_defaults=True)
        return {name: value for name, value in given.items() if known.get(name) != value and OBJECTS not in str(value)}

    @classmethod
    def create(cls, settings: Mapping[str, Any]) -> Config:
        """Create a configuration from plain data; raise ConfigError with the setting, its value and the fix."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            found = error.errors()
            more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
            raise ConfigError("; ".join([*(explain(e, cls) for e in found[:SHOWN]), *more])) from None

    def replace(self, **changes: Any) -> Config:
        """Return a validated copy with some settings changed; raises ConfigError."""
        return Config.create({**self.model_dump(), **one_spelling(changes)})


def _without_folder(name: str) -> str:
    """Return ``file.py:NAME`` without the folder of the file, which may move; other names unchanged."""
    place, colon, word = name.rpartition(":")
    return f"{Path(place).name}:{word}" if colon and place.endswith(".py") else name


ESConfig = Config
"""The public name, beside `ESTrainer` (docs/decisions/2026-11-30-names-of-trl.md)."""

_SOURCES = {
    *("task", "environment", "task_args", "train_dataset", "eval_dataset", "eval_size", "prompt_column"),
    "reward_funcs",
}

_INCIDENTAL: dict[str, Any] = {
    # The base model is identified by its fingerprint, not by its path.
    **dict.fromkeys(("model", "output_dir", "generations", "eval_steps", "eval_prompts", "eval_tasks"), True),
    **dict.fromkeys(("logging_steps", "report_to", "log_completions", "save_steps", "save_total_limit"), True),
    "kl_steps": True,
    # Training data are identified by their digest, rewards by `RewardSettings.identity`.
    **dict.fromkeys(("train_dataset", "eval_dataset", "eval_size", "prompt_column"), True),
    "reward_funcs": True,
    **dict.fromkeys(("reward_workers", "reward_timeout", "reward_memory_mb", "max_reward_failure_rate"), True),
    **dict.fromkeys(("products", "trust_remote_code"), True),
    "transformers": {"device", "weights_folder"},
    "vllm": {
        *("tensor_parallel_size", "weights_memory"),
        *("gpu_memory_utilization", "kv_cache_memory_bytes", "enforce_eager", "download_dir", "hf_token"),
    },
    "toy": {"delay"},
    # Workers are identified by the engine they run, see `Config.identity`.
    "ray": True,
}
