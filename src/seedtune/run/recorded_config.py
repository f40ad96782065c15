"""The configuration recorded in a ledger, and a run's settings for replay on another engine.

Weights do not depend on the engine, so any engine can replay them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from seedtune.config import trusted_settings
from seedtune.config.config import Config
from seedtune.config.data_and_rewards import OBJECTS, OWN_TASK
from seedtune.config.foreign_data import Count, conform
from seedtune.config.paths import in_full
from seedtune.config.yaml_file import override, parse_settings, read_file
from seedtune.engines import ENGINES
from seedtune.errors import ConfigError, LedgerError, ModelError, RunError, resume_command
from seedtune.numerics import noise
from seedtune.run import ledger, sealing
from seedtune.run.directory import RunPaths
from seedtune.run.records import Header
from seedtune.strategies.state_schema import check_state as check_form

log = logging.getLogger("seedtune")

REPLAYS = {"vllm": "transformers"}
"""Engine of a run (of its Ray workers) → engine that replays its weights when no completions are needed.

The replaying engine starts at once, on any machine.
"""


def with_settings(recorded: Config, sets: Iterable[str]) -> Config:
    """Override a run's settings with ``key=value`` ones; ConfigError names an unknown setting or an invalid value.

    Weights do not depend on the matrix products, so any machine can replay them.
    """
    return Config.create(override({**recorded.model_dump(), "products": "auto"}, sets))


def for_weights(recorded: Config, sets: Iterable[str] = (), *, model: str | None = None) -> Config:
    """Return the settings that replay a run's weights: its own with ``sets`` on top, and the engine of `REPLAYS`.

    ConfigError names a setting in ``sets`` that results depend on.
    """
    listed = list(sets)
    kind = weights_kind(recorded.kinds)
    config = with_settings(recorded, [f"engine={REPLAYS.get(kind, kind)}", *listed])
    for item in listed:
        section = item.partition(".")[0].strip()
        if section in ENGINES and section != config.engine:
            raise ConfigError(
                f"{item!r} is for engine={section}, but engine={config.engine} brings the weights back. Give "
                f"engine={section}, too, or leave it out."
            )
    changed = changed_fields(_of_results(recorded), _of_results(config))
    if changed:
        raise ConfigError(f"{'; '.join(changed)}: the run is what it is. Leave that out, or start a new run with it.")
    return config if model is None else config.replace(model=model)


@contextmanager
def hinting(engine: str, config: Config) -> Iterator[None]:
    """Extend an engine's ModelError by a hint to use the run's own ``engine``, if that is another."""
    try:
        yield
    except ModelError as error:
        if config.engine == engine:
            raise
        hint = f"Or use the engine that the run was made with: --set engine={engine}."
        raise ModelError(f"{error} {hint}") from error


def _of_results(config: Config) -> dict[str, Any]:
    """Return the settings that results depend on, besides the engine; fingerprints verify the engine's weights."""
    technical = ("engine", "dtype", "members_per_job", "max_staleness", *ENGINES)
    return {name: value for name, value in config.identity().items() if name not in technical}


WEIGHTS = ("seed", "perturbation", "rank", "shared_noise", "subspaces", "weights_dtype", "trainable")
"""Settings that determine the weights, besides the base model, the dtype of the weights and the updates."""


def how_to_go_on(config: Config) -> str:
    """Say how to resume a stopped run after its cause is fixed."""
    if config.has_objects:
        return "Nothing is lost: go on with ESTrainer(...).train(resume_from_checkpoint=True)."
    return f"Nothing is lost: go on with {resume_command(Path(config.output_dir))}"


def run_config(root: Path) -> Config:
    """Read the configuration of a run, without `trusted_settings` if this user did not write it on this machine.

    Raises RunError if ``root`` is not a run directory.
    """
    config, is_own = as_written(root)
    return config if is_own else trusted_settings.without(config)


def as_written(root: Path) -> tuple[Config, bool]:
    """Read the whole configuration of a run; also return whether this user's seedtune wrote it, unedited since.

    Raises RunError if ``root`` is not a run directory, ConfigError for settings that cannot be read.
    """
    path = RunPaths(root).config
    if not path.is_file():
        return _of_the_ledger_alone(root), False
    data = read_file(path)
    is_own = sealing.is_marked(data)
    try:
        with in_full(not is_own):
            return Config.create({**parse_settings(data, path), "output_dir": os.path.abspath(root)}), is_own
    except ConfigError as error:
        raise ConfigError(f"{error} Or delete {path}: the ledger holds what the run's results depend on.") from error


def _of_the_ledger_alone(root: Path) -> Config:
    """Return the settings that the ledger holds; ``generations`` is the number of recorded generations."""
    if not RunPaths(root).ledger.is_file():
        raise RunError(f"{root} is not a run directory: it has no config.yaml. Check the path.")
    contents = ledger.read(RunPaths(root).ledger)
    done = contents.generations
    log.warning(
        "%s has no config.yaml: results follow from the ledger, other settings have their defaults. To go on after "
        "generation %d: %s --generations N",
        *(root, done, resume_command(root)),
    )
    return config_of(contents.header).replace(output_dir=str(root), generations=max(1, done))


def trusted(root: Path, sets: Iterable[str], command: str, *, on: Sequence[object] = ()) -> Config:
    """Read the configuration of a run whose code is to run.

    ConfigError names the trusted settings of another person's run that ``sets`` do not repeat, and how to add them to
    ``command``; if the run's own task is not among the tasks ``on``, a warning names them instead.
    """
    config, is_own = as_written(root)
    if is_own:
        return config
    source = next(path for path in (RunPaths(root).config, RunPaths(root).ledger) if path.is_file())
    if not on or config.task in on:
        trusted_settings.check_given(config, sets, source=str(source), command=command)
    elif left := trusted_settings.not_given(config, sets):
        log.warning("%s was not written by you on this machine, or edited since; left out: %s", source, ", ".join(left))
    return trusted_settings.without(config)


def check_same_run(root: Path, recorded: Header, config: Config) -> None:
    """Raise RunError with every setting that differs from the ledger's header.

    Rows that the model cannot read may be dropped on the way; what else truncation does is in the data's digest.
    """
    now = config.identity()
    same = {"prompt_truncation": config.prompt_truncation}
    changes = changed_fields({**_newer_settings(recorded, now), **recorded.config, **same}, now)
    if changes:
        raise RunError(
            f"{root} was started with another configuration ({'; '.join(changes)}). "
            "Put the recorded values back, or start a new run in another output_dir."
        )
    check_noise(str(root), recorded.noise)


def _newer_settings(recorded: Header, now: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a ledger does not have because they came later, at their defaults: as it was made."""
    defaults = Config().identity()
    return {name: defaults[name] for name in now if name in defaults and name not in recorded.config}


def check_noise(what: str, scheme: str) -> None:
    """Raise LedgerError if ``what`` uses another noise scheme than this version."""
    if scheme != noise.SCHEME:
        raise LedgerError(
            f"{what} uses noise scheme {scheme!r}; this version makes {noise.SCHEME!r}. Use a version that makes it."
        )


def weights_kind(kinds: Sequence[str]) -> str:
    """Choose, among the engine kinds that evaluated, the kind that replays the weights."""
    return "transformers" if "transformers" in kinds else kinds[0]


def check_state(root: Path, contents: ledger.Contents) -> None:
    """Raise LedgerError if the last record holds a state that no strategy makes."""
    try:
        check_form(contents.records[-1].state if contents.records else {})
    except ValueError as error:
        raise LedgerError(
            f"{root}: the last generation's state is none that a strategy makes ({error}): the ledger was edited and "
            "sealed again. Restore it from a copy."
        ) from error


class _Engines(TypedDict):
    engine: str
    max_staleness: NotRequired[Count]


def config_of(header: Header) -> Config:
    """Rebuild the configuration from a ledger's header, as far as results depend on it.

    Raises LedgerError if its settings are none of this version's.
    """
    try:
        engines = conform(header.config, _Engines)
        settings = {**header.config, **header.sources, "model": header.model}
        if settings.get("task") == OWN_TASK:  # `Config.sources` leaves Python objects out
            settings.setdefault("train_dataset", OBJECTS)
        settings |= {"reward_weights": settings.get("reward_weights") or None}
        settings.pop("max_staleness", None)
        kinds, max_staleness = engines["engine"].split("+"), engines.get("max_staleness", 0)
        if len(kinds) > 1 or max_staleness:
            workers = dict.fromkeys(kinds, 1)
            settings |= {"engine": "ray", "ray": {"workers": workers, "max_staleness": max_staleness}}
        with in_full():
            return Config.create(settings)
    except (ValueError, ConfigError) as error:
        raise LedgerError(
            f"the settings in the ledger, by seedtune {header.seedtune[:40]}, are none of this version's: {error} Use "
            "the version that wrote it."
        ) from error


def changed_fields(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return ``name: recorded → current`` for every setting that differs."""
    return [f"{name}: {before!r} → {now!r}" for name, before, now in differences(recorded, current)]


def differences(one: Mapping[str, Any], two: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, value in ``one``, value in ``two``) for every difference in nested data, by name."""
    for key in sorted(set(one) | set(two)):
        a, b = one.get(key), two.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b
