"""One frozen, validated configuration: a YAML file, keyword arguments, or ``--set key=value``.

Names follow TRL where TRL has one.  ``Config.identity`` is the part that a run's results depend on: it goes
into the ledger's header and may not change on resume; the rest (how often to save, to evaluate) may.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from seedtune.errors import ConfigError, nearest


class Section(BaseModel):
    """A frozen group of settings that knows its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class TransformersSettings(Section):
    """Precision, device and memory of the in-process engine."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the forward pass; ``auto`` is the checkpoint's own (see ``master`` for the centre)."""

    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``; ``auto`` takes CUDA where there is one."""

    max_rows: int = Field(default=256, ge=1)
    """Rows (completions) in flight at once; the rest wait for a free slot."""

    max_batch_tokens: int = Field(default=65536, ge=1)
    """Positions of the key-value cache over all rows in flight: bounds its memory."""

    prefill_tokens: int = Field(default=1024, ge=1)
    """Prompt tokens of one prefill pass: bounds the memory of activations."""

    packed: Literal["auto", "yes", "no"] = "auto"
    """Keep linear weights in the layout the processor multiplies fastest (bfloat16 on CPUs).  ``auto``: yes with
    ``master: float32`` (with ``gaussian`` that is a second copy of the live weights), no with ``master: none``."""

    centre_file: str | None = None
    """Keep the centre in a memory-mapped file in this folder instead of in memory (CPU only)."""

    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint.  Off unless you trust its author."""

    @field_validator("packed", mode="before")
    @classmethod
    def _words_of_yaml(cls, value: Any) -> Any:
        """YAML reads an unquoted yes or no as true or false."""
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


class ToySettings(Section):
    """The toy engine: a linear model of numpy arrays, for tests and for trying things in seconds."""

    size: int = Field(default=16, ge=1, le=4096)
    """Rows and columns of each of its two weight matrices."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of its weights."""

    delay: float = Field(default=0.0, ge=0.0)
    """Seconds to wait per job, to play a slow model."""


class Config(Section):
    """Everything a run needs.  Unknown keys are errors; every default is one that trains."""

    model: str = "smollm2-135m"
    """Hugging Face id, local folder, or a built-in name (``smollm2-135m``)."""

    task: str = "conciseness"
    """Built-in task (``seedtune tasks``); the Python ``Trainer`` may bring data and rewards instead."""

    engine: Literal["transformers", "toy"] = "transformers"
    """What evaluates the population."""

    output_dir: str = "runs/run"
    """The run directory: ledger, metrics, samples, snapshots, report."""

    seed: int = Field(default=0, ge=0, lt=2**64)
    """Run seed: addresses all noise, the order of prompts and sampling draws."""

    generations: int = Field(default=100, ge=1)
    """Generations of the whole run; a finished run may be resumed with more."""

    population: int = Field(default=32, ge=2)
    """Members per generation, N."""

    sigma: float = Field(default=0.001, gt=0.0)
    """Standard deviation of each weight's perturbation, σ."""

    alpha: float | None = Field(default=None, gt=0.0)
    """Step size α of θ ← θ + (α/N) Σ zᵢ εᵢ, 1/σ absorbed; left out it is σ/2, the paper's ratio."""

    antithetic: bool = True
    """Evaluate +ε and −ε of every noise sample (the population must then be even)."""

    perturbation: Literal["lowrank", "gaussian"] = "lowrank"
    """``lowrank``: A·Bᵀ/√r for every linear weight, the population in one batch; ``gaussian``: i.i.d. noise for
    every element of every tensor, members one after the other (the paper's method)."""

    rank: int = Field(default=1, ge=1, le=64)
    """Rank r of a low-rank perturbation."""

    master: Literal["float32", "none"] = "float32"
    """Precision of the centre: ``float32``, or ``none``: the model's own, with stochastic rounding, at no memory
    beyond the model's."""

    trainable: tuple[str, ...] = ("*",)
    """Patterns of Hugging Face tensor names that train."""

    freeze: tuple[str, ...] = ()
    """Patterns of tensor names that do not, such as ``*.embed_tokens.*``."""

    shaping: Literal["zscore", "per_prompt"] = "zscore"
    """``zscore``: (R − mean)/std over the population; ``per_prompt``: centred per prompt, global std."""

    prompts_per_generation: int = Field(default=8, ge=1)
    """Training prompts every member answers in a generation (all of them if there are fewer)."""

    evaluate_centre: bool = True
    """Let the centre answer each generation's prompts too, as one more member outside the population."""

    members_per_job: int = Field(default=0, ge=0)
    """Members batched together; 0 is the whole population.  Part of a run's identity, unlike the workers."""

    system_prompt: str | None = None
    """Put before every chat prompt of the task."""

    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, for example ``enable_thinking: false``."""

    max_completion_length: int = Field(default=256, ge=1)
    """New tokens of a completion at the most."""

    temperature: float = Field(default=0.0, ge=0.0)
    """0 decodes greedily; above, every member samples with the same draws."""

    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Nucleus sampling: keep the most probable tokens of this total mass."""

    stop: tuple[str, ...] = ()
    """Strings that end a completion."""

    fingerprint_steps: int = Field(default=10, ge=1)
    """Every this many generations the centre's fingerprint goes into the ledger."""

    eval_steps: int = Field(default=0, ge=0)
    """Evaluate the held-out split every this many generations; 0: only before and after training."""

    eval_prompts: int = Field(default=0, ge=0)
    """Held-out prompts used; 0 is all of them."""

    logging_steps: int = Field(default=1, ge=1)
    """Show progress every this many generations (metrics are always written)."""

    save_steps: int = Field(default=25, ge=0)
    """Snapshot the centre every this many generations, for a quick resume; 0: only at the end."""

    save_total_limit: int = Field(default=2, ge=1)
    """Snapshots kept."""

    transformers: TransformersSettings = TransformersSettings()
    """Settings of the transformers engine."""

    toy: ToySettings = ToySettings()
    """Settings of the toy engine."""

    @model_validator(mode="after")
    def _pairs_are_whole(self) -> Config:
        if self.antithetic and self.population % 2:
            raise ValueError(
                f"population={self.population} is odd, but antithetic pairs need an even one: "
                f"use {self.population + 1}, or antithetic=false"
            )
        return self

    @model_validator(mode="after")
    def _rank_is_of_lowrank(self) -> Config:
        if self.perturbation != "lowrank" and self.rank != 1:
            raise ValueError(
                f"rank={self.rank} means nothing with perturbation={self.perturbation}: leave it out, "
                "or use perturbation=lowrank"
            )
        return self

    @property
    def step(self) -> float:
        """α, or σ/2 where none was given."""
        return self.sigma / 2 if self.alpha is None else self.alpha

    def identity(self) -> dict[str, Any]:
        """What the results depend on, as plain JSON data."""
        data = self.model_dump(mode="json", exclude=_INCIDENTAL)
        for other in {"transformers", "toy"} - {self.engine}:
            del data[other]
        return data

    @classmethod
    def create(cls, settings: Mapping[str, Any]) -> Config:
        """A configuration from plain data; ConfigError names the setting, its value and the fix."""
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None

    def replace(self, **changes: Any) -> Config:
        """A validated copy with some settings changed."""
        return Config.create({**self.model_dump(), **changes})


_INCIDENTAL: dict[str, Any] = {
    # The base model is known by its fingerprint, not by where it lies.
    **dict.fromkeys(("model", "output_dir", "generations", "eval_steps", "eval_prompts", "logging_steps"), True),
    **dict.fromkeys(("save_steps", "save_total_limit"), True),
    "transformers": {"device", "trust_remote_code", "centre_file", "packed"},
    "toy": {"delay"},
}


def load_config(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply ``key=value`` overrides (dotted keys reach into sections)."""
    return Config.create(read_settings(path, overrides))


def read_settings(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The settings of a YAML file with overrides, not yet validated."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error}. Check the path.") from error
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds {type(settings).__name__}, not settings. Write lines like 'sigma: 0.006'.")
    return override(settings, overrides)


def override(settings: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """``settings`` with every ``a.b=value`` applied; values are read as YAML."""
    result = dict(settings)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item!r} is not of the form key=value, for example --set sigma=0.006")
        _assign(result, key.strip().split("."), _value(text), item)
    return result


def _value(text: str) -> Any:
    """A YAML value; numbers like ``1e-3``, which YAML takes for text, are numbers."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _assign(settings: dict[str, Any], path: list[str], value: Any, item: str) -> None:
    for key in path[:-1]:
        section = settings.get(key, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {item!r}: {key} is a value, not a section.")
        settings[key] = dict(section)
        settings = settings[key]
    settings[path[-1]] = value


def _explain(error: Any) -> str:
    """One pydantic error as: setting=value, what is wrong, what to do."""
    path = ".".join(str(piece) for piece in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        return f"unknown setting {path!r}.{nearest(str(error['loc'][-1]), known)} Known: {', '.join(known)}"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{path}={error['input']!r}: {message}" if path else message


def _known_keys(section: tuple[Any, ...]) -> list[str]:
    fields = Config.model_fields
    for key in section:
        annotation = fields[str(key)].annotation if str(key) in fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = annotation.model_fields
    return sorted(fields)
