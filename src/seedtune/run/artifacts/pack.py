"""Packs a run into one small file, and rebuilds the model from that file and its base model elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from seedtune import activities, engines
from seedtune.config import trusted_settings
from seedtune.config.config import Config
from seedtune.config.paths import BUILTIN_MODELS, in_full
from seedtune.engines.base import Engine, EngineInfo
from seedtune.errors import ConfigError, LedgerError, PackError, RunError, StorageError, storage_cause
from seedtune.numerics.machine import disk
from seedtune.run import directory, ledger, recorded_config, replay
from seedtune.run.artifacts import hub, pack_format
from seedtune.run.artifacts.export import Export, check_output, write_export
from seedtune.run.artifacts.hub_cache import licence_of, pinned
from seedtune.run.artifacts.model_card import Provenance, Rights, hub_id
from seedtune.run.artifacts.pack_format import About, Pack
from seedtune.run.lineage import Lineage
from seedtune.types import __version__

_SHOWN_ON_CARD = ("task", "population", "antithetic", "sigma", "alpha")
"""Settings that only the model card uses."""

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?<!\.pack)(@[^@]+)?")
"""A repository of the hub, perhaps with a revision."""

_WAYPOINTS = 4
"""Fingerprints included besides the last one, so that a wrong replay is detected early."""


def pack_run(
    run: str | Path,
    output: str | Path,
    *,
    generation: int | str | None = None,
    rights: Rights | None = None,
    sets: Iterable[str] = (),
    progress: replay.Progress | None = None,
) -> Pack:
    """Write a run's fine-tune after ``generation`` generations (all by default) into the file ``output``.

    The base model is only needed if the ledger has no fingerprint of that generation: then the run is replayed, with
    ``sets`` as in `seedtune.verify_run`.
    Without a ``base_licence`` in ``rights``, the licence is read from the base model's card if that is on this machine.
    Raises RunError if ``output`` exists or the run has fewer generations, LedgerError for a corrupted ledger, PackError
    for more than a pack holds, and StorageError if the file cannot be written.
    """
    root, target = Path(run), Path(output)
    if target.exists():
        raise RunError(f"{str(target)!r} exists already. Choose another --output.")
    contents = ledger.read(directory.RunPaths(root).ledger)
    goal = replay.goal_of(root, contents.generations, generation, chosen=contents.chosen)
    recorded_config.check_noise(str(root), contents.header.noise)
    recorded_config.config_of(contents.header)
    fingerprint = contents.fingerprints.get(goal) or _replayed(root, goal, sets, progress)
    lineage = Lineage(contents.records)
    about = _about(contents, lineage, goal, fingerprint, rights or Rights())
    pack = Pack(about, tuple(lineage.updates(goal)))
    _write(target, pack_format.dump(pack))
    return pack


def _replayed(root: Path, goal: int, sets: Iterable[str], progress: replay.Progress | None) -> str:
    recorded = replay.RecordedRun.read(root)
    with recorded.weights(recorded_config.for_weights(recorded.config, sets), goal, progress) as engine:
        return engine.fingerprint()


def _about(contents: ledger.Contents, lineage: Lineage, goal: int, fingerprint: str, rights: Rights) -> About:
    header, config = contents.header, dict(contents.header.config)
    config["engine"] = recorded_config.weights_kind(config["engine"].split("+"))
    kept = ["engine", "dtype", *recorded_config.WEIGHTS, *_SHOWN_ON_CARD]
    kept += [config["engine"]] if config["engine"] != "vllm" else []  # its options are those of this machine
    return About(
        seedtune=__version__,
        noise=header.noise,
        model=pinned(header.model),
        base_fingerprint=header.base_fingerprint,
        resolved_weights_dtype=header.resolved_weights_dtype,
        config={key: config[key] for key in kept if key in config},
        generations=goal,
        fingerprints={**_waypoints(contents, goal, lineage), str(goal): fingerprint},
        base_licence=rights.base_licence or licence_of(header.model),
        licence=rights.licence,
        note=rights.note,
    )


def _waypoints(contents: ledger.Contents, goal: int, lineage: Lineage) -> dict[str, str]:
    """Choose a few recorded fingerprints on the way to ``goal``, evenly spaced."""
    before = sorted(done for done in contents.fingerprints if done < goal and lineage.reaches(done, goal))
    chosen = {before[len(before) * k // _WAYPOINTS] for k in range(_WAYPOINTS)} if before else set()
    return {str(done): contents.fingerprints[done] for done in sorted(chosen)}


def _write(target: Path, data: bytes) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        disk.put(target, data)
    except OSError as error:
        cause, fix = storage_cause(error)
        raise StorageError(f"cannot write {str(target)!r}: {cause}. {fix}, or choose another --output.") from error


# ------------------------------------------------------------------------------- apply


def apply_pack(
    pack: str | Path,
    output: str | Path,
    *,
    base: str | None = None,
    dtype: str | None = None,
    sets: Iterable[str] = (),
    progress: replay.Progress | None = None,
) -> Export:
    """Rebuild a packed fine-tune from its base model and write it as a Hugging Face folder.

    ``pack`` is a file, or ``user/name`` (also ``user/name@revision``) of the hub; ``base`` is the base model's folder
    or id, by default the id or built-in name in the pack.  The tensors equal those written by ``export_run`` bit for
    bit.  ``sets`` are ``key=value`` settings that weights do not depend on (``transformers.device=cpu``).  Raises
    PackError, and writes nothing, if ``pack`` is not a pack, truncated, edited or too new, if ``base`` is another base
    model, or if the rebuilt weights differ; HubError if it cannot be downloaded.
    """
    target = Path(output)
    check_output(target)
    path = _file_of(str(pack))
    found = pack_format.read(path)
    about, watch = found.about, replay.Stopwatch(progress)
    config = _config(path, about, base, sets)
    with closing(engines.create(config)) as engine:
        with recorded_config.hinting(about.config.get("engine", config.engine), config):
            with activities.doing("loading the model"):
                info = engine.load()
            _check_base(path, about, info)
        _rebuild(path, found, engine, watch)
        rights = Rights(about.base_licence, about.licence, about.note)
        named = config.model_copy(update={"model": about.model})  # a text of the card: not a path of this machine
        write_export(engine, Provenance(named, about.generations, rights), target, dtype=dtype)
    return Export(about.generations, watch.updates, watch.seconds)


def _file_of(name: str) -> Path:
    """Return the file of a pack, downloaded if it is that of a repository on the hub."""
    if Path(name).exists() or not _REPOSITORY.fullmatch(name):
        return Path(name)
    return hub.fetch_pack(name)


def _base_of(path: Path, about: About) -> str:
    """Return the base model that a pack names, if its name is an id of the hub or a built-in one."""
    name = about.model
    is_id = hub_id(name) is not None and ("/" in name or "@" in name or about.config.get("engine") == "toy")
    if not (is_id or name in BUILTIN_MODELS):
        raise PackError(f"{path} was made from a model that is not on the hub, {name!r}. Give its folder: --model BASE")
    return name


def _config(path: Path, about: About, base: str | None, sets: Iterable[str]) -> Config:
    """Return the settings of a pack, with the base model and the overrides of this machine."""
    try:
        recorded_config.check_noise(str(path), about.noise)
        with in_full():
            packed = trusted_settings.without(Config.create(dict(about.config)))
    except (ConfigError, LedgerError) as error:
        raise PackError(f"{path} was made by seedtune {about.seedtune} and needs another version: {error}") from error
    if about.model.startswith(("/", "~", "./", "../")) or about.model in (".", ".."):
        raise PackError(
            f"{path} names its base model by a path, {about.model!r}: it was not written by 'seedtune pack'. Get "
            "another copy."
        )
    return recorded_config.for_weights(packed, sets, model=base or _base_of(path, about))


def _check_base(path: Path, about: About, info: EngineInfo) -> None:
    if info.base_fingerprint != about.base_fingerprint:
        raise PackError(
            f"{path} was made from the base model {about.model!r} with fingerprint {about.base_fingerprint}, but "
            f"{info.model!r} has {info.base_fingerprint}. Give the same base model, in its original precision."
        )
    if info.resolved_weights_dtype != about.resolved_weights_dtype:
        raise PackError(
            f"{path} was made with weights in {about.resolved_weights_dtype}; {replay.other_weights_dtype(info)}"
        )


def _rebuild(path: Path, pack: Pack, engine: Engine, progress: replay.Progress) -> None:
    """Apply all updates; PackError at the first fingerprint that differs from the packed one."""
    expected = {int(done): fingerprint for done, fingerprint in pack.about.fingerprints.items()}
    for done in replay.walk(engine, pack.updates, stops=expected, progress=progress):
        found = engine.fingerprint()
        if found != expected[done]:
            raise PackError(
                f"{path} does not give what it was made from: after {done} generations the fingerprint is {found}, "
                f"not {expected[done]}. The file was forged, or this version ({__version__}) computes otherwise than "
                f"the one that made it ({pack.about.seedtune}). Nothing was written."
            )
