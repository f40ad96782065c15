"""The sections of a configuration: groups of settings for engines, schedules, conversations and look-ahead."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from seedtune.config.foreign_data import check_finite, shown
from seedtune.config.paths import LocalPath, absolute
from seedtune.errors import ConfigError, suggest
from seedtune.types import COUNT, STEPS

DAY = 86_400.0
"""Upper bound of time limits in seconds: operating systems count milliseconds in 32 bits."""


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors, and every number has a lower and an upper bound."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _paths_are_text(cls, data: Any) -> Any:
        """Read ``Path`` objects, which Python programs give, as text."""
        return {name: _text_of_path(value) for name, value in data.items()} if isinstance(data, dict) else data

    @field_validator("*", mode="before")
    @classmethod
    def _plain_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` and text for a number, and infinity and NaN inside free-form settings; one text is a list.

        Python takes ``true`` for 1, and pydantic the text ``010`` for 10, which is 8 to other readers of YAML.
        """
        types = types_in(cls.model_fields[str(info.field_name)].annotation)
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
        if types & {int, float} and any(isinstance(part, bool) for part in parts):
            raise ValueError("must be a number, not true or false")
        if types & {int, float} and str not in types and any(isinstance(part, str) for part in parts):
            raise ValueError("must be a number, like 10, 0.5 or 1e-3, not text")
        if types >= {str, Ellipsis} and isinstance(value, str):
            return (value,)
        if Any in types:
            check_finite(value)
        return value


def types_in(annotation: Any) -> set[Any]:
    """Return the types inside an annotation such as ``int | dict[str, int]``."""
    parts = get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]
    return set().union(*map(types_in, parts)) if parts else {annotation}


_SECRET = re.compile(
    r"(?:.*[_-])?(?:(?:hf|hub|api|access|auth|bearer|private)[_-]?(?:token|key)|password|secret)|token", re.I
)


def is_secret(name: str) -> bool:
    """Return whether a setting or a parameter of an address is called like a password or key."""
    return _SECRET.fullmatch(name) is not None


def check_no_secrets(settings: Any, place: str = "") -> None:
    """Raise ConfigError, which does not repeat it, if a setting at any depth is a secret: settings go into files."""
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if isinstance(value, str) and value and is_secret(str(name)):
            raise ConfigError(
                f"{place}{name} is a secret, and settings are written into files that travel (config.yaml, the ledger, "
                "packs). Leave it out, and export it as an environment variable: Hugging Face reads HF_TOKEN."
            )
        check_no_secrets(value, f"{place}{name}.")


def _text_of_path(value: Any) -> Any:
    """Return a path object, or those in a list, as text; anything else unchanged."""
    if type(value) in (list, tuple):
        return [os.fspath(item) if isinstance(item, os.PathLike) else item for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def yes_or_no(value: Any) -> Any:
    """Convert a bool back to ``yes`` or ``no``: YAML parses these words, unquoted, as true and false."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def none_for_auto(value: Any) -> Any:
    """Read ``auto`` as None, for numbers that a run finds by itself."""
    return None if value == "auto" else value


class TransformersSettings(Section):
    """Device and memory of the in-process engine."""

    _auto = field_validator("max_rows", "max_batch_tokens", mode="before")(none_for_auto)

    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, ``mps``; ``auto`` uses CUDA if available."""

    max_rows: int | None = Field(default=None, ge=1, le=COUNT)
    """Rows (completions) in flight at once; the rest wait for a free slot.  By default (``auto``) 256 on a CPU, on a
    GPU what its free memory allows, at most 2048; recorded, so that a resumed run has the same."""

    max_batch_tokens: int | None = Field(default=None, ge=1, le=2**30)
    """Positions of the key-value cache over all rows in flight; limits its memory.  A prefill pass reads a 64th of
    them, at least 1024.  By default (``auto``) 65,536 on a CPU, on a GPU what 70 % of its free memory
    holds; recorded."""

    weights_folder: LocalPath | None = None
    """Keep the current weights in a memory-mapped file in this folder instead of in memory (CPU only)."""


class VllmSettings(Section):
    """The vLLM engine.  Any option of vLLM's engine can be given here, too, under vLLM's name."""

    model_config = ConfigDict(extra="allow")

    tensor_parallel_size: int = Field(default=1, ge=1, le=1024)
    """Ranks that each tensor is sharded over."""

    max_num_seqs: int = Field(default=256, ge=1, le=COUNT)
    """Completions in flight at once; the rest wait."""

    max_loras: int = Field(default=32, ge=1, le=COUNT)
    """Members in one batch (``lowrank``), each a LoRA adapter; further members wait."""

    weights_memory: Literal["device", "host"] = "device"
    """Where the current weights are kept: next to vLLM's weights, or in pinned host memory, from where they are copied
    to the GPU in bands whenever members are written or the current weights change.  On a CPU both are the same."""

    @model_validator(mode="before")
    @classmethod
    def _download_folder(cls, data: Any) -> Any:
        """Make the one option of vLLM's that is a path absolute, like our own."""
        place = data.get("download_dir") if isinstance(data, dict) else None
        return {**data, "download_dir": absolute(place)} if isinstance(place, str) else data

    @model_validator(mode="after")
    def _check_options(self) -> VllmSettings:
        """Check the options of vLLM that seedtune reads before vLLM does."""
        length, eager = self.option("max_model_len"), self.option("enforce_eager")
        check_finite(self.model_extra)
        if length is not None and (type(length) is not int or not 1 <= length <= 2**30):
            raise ValueError(f"max_model_len={shown(length)} must be a whole number of tokens, at least 1")
        if eager is not None and not isinstance(eager, bool):
            raise ValueError(f"enforce_eager={eager!r} must be true or false")
        return self

    def option(self, name: str) -> Any:
        """Return an option of vLLM's engine; None if it is not given."""
        return (self.model_extra or {}).get(name)


class ToySettings(Section):
    """The toy engine: a linear model of numpy arrays, for tests and for experiments that take seconds."""

    size: int = Field(default=16, ge=1, le=4096)
    """Rows and columns of each of the two weight matrices."""

    delay: float = Field(default=0.0, ge=0.0, le=DAY)
    """Seconds to wait per job, to simulate a slow model."""


WorkerCount = Annotated[int, Field(ge=1, le=10_000)]


class RaySettings(Section):
    """Ray workers, each with one engine: members are distributed over them, weights are never sent."""

    workers: WorkerCount | dict[str, WorkerCount] = Field(default=2)
    """Number of workers of the kind ``engine``, or a number per kind, such as ``{vllm: 2, transformers: 1}`` (then
    rewards depend on which kind answers).  Change it while training with ``seedtune ray scale RUN N``."""

    engine: Literal["transformers", "vllm", "toy"] = "transformers"
    """Engine of each worker; its settings are in the section of the same name."""

    min_workers: WorkerCount = 1
    """The run waits while there are fewer workers."""

    address: str | None = None
    """Address of a Ray cluster: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; by default Ray is started locally."""

    resources: dict[str, Annotated[float, Field(ge=0.0, le=1e9)]] = Field(default_factory=dict)
    """Ray resources of a worker, by Ray's names.  ``CPU``: cores and threads, by default an equal share of this
    machine, or 1 in a cluster.  ``GPU``: by default 1, or ``vllm.tensor_parallel_size``, if Ray has any."""

    detached: bool = False
    """Keep workers of a cluster (``address``) alive if the driver is killed; a resumed run takes them over."""

    retries: int = Field(default=4, ge=0, le=1000)
    """Retries of a job that failed or whose worker died, before its members get no reward."""

    start_timeout: float = Field(default=900.0, gt=0.0, le=DAY)
    """Seconds to wait for ``min_workers`` before the run stops, and for a job before any job has finished; also the
    limit of every snapshot and export."""

    straggler_timeout: float = Field(default=60.0, gt=0.0, le=DAY)
    """A worker is abandoned when a job takes longer than this many seconds and ten times as long as expected."""

    max_staleness: int = Field(default=0, ge=0, le=STEPS)
    """Asynchronous mode: when a worker would idle, an update uses the finished members, which may be up to this many
    generations old.  0: every update waits for its whole generation."""

    @model_validator(mode="after")
    def _counts(self) -> RaySettings:
        kinds = self.kinds
        wrong = [f"{name}: {count}" for name, count in kinds.items() if count < 1 or name not in RAY_ENGINES]
        if wrong or not kinds:
            known = ", ".join(RAY_ENGINES)
            raise ValueError(
                f"workers={self.workers!r}: give a number of at least 1, for each of {known} that you want"
            )
        if self.min_workers > sum(kinds.values()):
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}: the run would wait")
        if not isinstance(self.workers, int) and self.engine not in ("transformers", *kinds):
            raise ValueError(f"engine={self.engine} means nothing beside workers={self.workers!r}: leave one out")
        gpus = self.resources.get("GPU", 0.0)
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"resources={self.resources}: give a whole number of GPUs, or a share of one GPU")
        if any(amount <= 0 for name, amount in self.resources.items() if name != "GPU"):
            raise ValueError(f"resources={self.resources}: amounts must be above 0")
        if self.detached and self.address is None:
            raise ValueError("detached=true needs address: Ray that is started here ends with this process")
        return self

    @property
    def of_a_cluster(self) -> dict[str, float]:
        """Resources that only a cluster has: all but CPUs and GPUs."""
        return {name: amount for name, amount in self.resources.items() if name not in ("CPU", "GPU")}

    @property
    def kinds(self) -> dict[str, int]:
        """Number of workers per engine, by name."""
        return {self.engine: self.workers} if isinstance(self.workers, int) else dict(sorted(self.workers.items()))


RAY_ENGINES = ("toy", "transformers", "vllm")
"""Engines that a worker may run."""


class ConversationSettings(Section):
    """Settings of conversations with an environment."""

    max_turns: int = Field(default=8, ge=1, le=10_000)
    """Most messages of the model; each is limited by ``max_completion_length``."""

    tools: Literal["template", "text"] = "template"
    """How an environment's tools are described to the model: ``tools=`` of its chat template, or ``text`` in the prompt
    (always used for plain-text prompts)."""


class LikelihoodSettings(Section):
    """The columns that log-probability objectives read."""

    answer_column: str = "answer"
    """``logprob``: the text whose log-probability is the reward.  ``choice_accuracy``: the right choice, as its text,
    its index from 0, or its letter."""

    choices_column: str = "choices"
    """``choice_accuracy``: the list of answers to choose from."""


class LookAheadSettings(Section):
    """Sharpness-aware look-ahead (arXiv 2602.01003): a step takes two generations, the first only to find θ'."""

    radius: float | None = Field(default=None, gt=0.0, le=1e6)
    """ρ, which turns look-ahead on: the factor of the descent to θ' (ESSAM, like α: try σ/5), or with ``probes`` its
    length ‖θ' − θ‖ over all weights (a member's perturbation has length σ√d: try a tenth of that)."""

    probes: int | None = Field(default=None, ge=2, le=COUNT)
    """ESSAM-F: the first generation has only this many members (10 in the paper), and its step has a fixed length."""


class ScheduleSettings(Section):
    """Schedule of σ or α over a run, as a factor of the first value (formulas: ``seedtune.strategies.schedules``)."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """``linear`` and ``cosine`` change to ``to`` times the first value."""

    over: int | None = Field(default=None, ge=1, le=STEPS)
    """``linear``, ``cosine``: reach ``to`` after this many generations, and stay there."""

    to: float = Field(default=0.1, gt=0.0, le=1e6)
    """``linear``, ``cosine``: the last factor."""

    warmup: int = Field(default=0, ge=0, le=STEPS)
    """Generations of linear warm-up to the schedule's value, from 1/(warmup + 1) of it; for every kind."""

    @model_validator(mode="after")
    def _says_when(self) -> ScheduleSettings:
        """Require ``over``: a schedule over the run's length would change past steps when the run is extended."""
        if self.kind != "constant" and self.over is None:
            raise ValueError(
                f"kind={self.kind} needs over: give the number of generations, for example over=100 "
                "(not taken from the run's generations, because a run can be resumed with more)"
            )
        for name in ("over", "to") if self.kind == "constant" else ():
            given = getattr(self, name)
            if given != type(self).model_fields[name].default:
                raise ValueError(f"{name}={given} means nothing with kind={self.kind}: leave it out, or change kind")
        return self


def explain(error: Any, model: type[BaseModel], prefix: str = "") -> str:
    """Format a pydantic error of ``model`` as: setting=value, what is wrong, what to do."""
    path = (prefix + ".".join(str(piece)[:100] for piece in error["loc"])).removesuffix(".")
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1], model)
        listed = f"Known: {', '.join(known)}" if known else "There are none."
        name = str(error["loc"][-1])
        hint = f" It is a top-level setting: {name}." if name in model.model_fields else suggest(name, known)
        return f"unknown setting {path!r}.{hint} {listed}"
    message = _MESSAGES.get(
        error["type"], error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    )
    return f"{path}={shown(error['input'])}: {message}" if path else message


_MESSAGES = {
    "string_type": "must be text: put it into quotes",
    **dict.fromkeys(("dict_type", "model_type"), "must be a mapping, like {name: value}"),
    "tuple_type": "must be a list, like [a, b]",
    "invalid_key": "names of settings are text: put it into quotes",
    "string_too_short": "must not be empty: leave it out",
}
"""Messages for types of pydantic's errors."""


def _known_keys(section: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    fields = model.model_fields
    for key in section:
        inner = section_in(fields[str(key)].annotation) if str(key) in fields else None
        fields = inner.model_fields if inner is not None else fields
    return sorted(fields)


def section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section class inside an annotation such as ``tuple[Section, ...]`` or ``Section | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_in(part)) is not None), None)
