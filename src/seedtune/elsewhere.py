"""A run's settings for another engine than its own: weights do not depend on the engine, so any can bring them back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from seedtune import ledger, replay
from seedtune.config.config import Config
from seedtune.config.yaml_file import override
from seedtune.engines import ENGINES
from seedtune.errors import ConfigError, ModelError

SHARED = ("dtype", "trust_remote_code")
"""Settings that mean the same in every engine that has them."""

REPLAYS = {"vllm": "transformers"}
"""Engine of a run (a fleet's workers') → the one that brings its weights back where nobody is to answer: it starts at
once, anywhere."""


def with_settings(recorded: Config, sets: Iterable[str]) -> Config:
    """A run's settings with ``key=value`` ones on top; another engine has the run's precision unless they say another.

    Every engine has a section of its name.
    ConfigError names a setting that does not exist or a value that cannot be.
    """
    listed, data = list(sets), recorded.model_dump()
    for name in {*ENGINES} & data.keys() - {"fleet"}:  # weights depend on no arithmetic: any machine brings them back
        data[name]["products"] = "auto"
    engine = override({"engine": recorded.engine}, _of_engine(listed))["engine"]
    if engine not in (recorded.engine, *recorded.kinds) and engine in ENGINES:
        own = data.pop(recorded.kinds[0])
        data |= {"engine": engine, engine: {**data[engine], **_shared(own, data[engine])}}
    return Config.create(override(data, listed))


def for_weights(recorded: Config, sets: Iterable[str] = (), *, model: str | None = None) -> Config:
    """The settings that bring a run's weights back: ``sets`` on top of its own, on the engine of `REPLAYS` by default.

    ConfigError names a setting in ``sets`` that results depend on.
    """
    listed = list(sets)
    kind = replay.any_of(recorded.kinds)
    default = REPLAYS.get(kind, kind)
    config = with_settings(recorded, [f"engine={default}", *listed])
    unheard = [item for item in listed if item.partition(".")[0].strip() in {*ENGINES} - {config.engine}]
    if unheard:
        section = unheard[0].partition(".")[0].strip()
        raise ConfigError(
            f"{unheard[0]!r} is for engine={section}, but engine={config.engine} brings the weights back. Give "
            f"engine={section}, too, or leave it out."
        )
    changed = ledger.changed_fields(_of_results(recorded), _of_results(config))
    if changed:
        raise ConfigError(f"{'; '.join(changed)}: the run is what it is. Leave that out, or start a new run with it.")
    return config if model is None else config.replace(model=model)


@contextmanager
def hinting(engine: str, config: Config) -> Iterator[None]:
    """What an engine says of a model names the run's own ``engine`` as a way out, if that is another."""
    try:
        yield
    except ModelError as error:
        if config.engine == engine:
            raise
        hint = f"Or use the engine that the run was made with: --set engine={engine}."
        raise ModelError(f"{error} {hint}") from error


def _of_engine(sets: Iterable[str]) -> list[str]:
    return [item for item in sets if item.partition("=")[0].strip() == "engine"]


def _shared(own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: own[name] for name in SHARED if name in own and name in other}


def _of_results(config: Config) -> dict[str, Any]:
    """What results depend on besides the engine; that its weights are the recorded ones, fingerprints say."""
    how = ("engine", "members_per_job", "lag", *ENGINES)
    return {name: value for name, value in config.identity().items() if name not in how}
