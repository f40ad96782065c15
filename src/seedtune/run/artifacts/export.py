"""Export of the current model as a Hugging Face folder, with a model card that describes how it was made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from seedtune import activities
from seedtune.config.config import Config
from seedtune.config.paths import BUILTIN_MODELS, public_name
from seedtune.engines.base import Engine
from seedtune.errors import ConfigError, RunError, StorageError, storage_cause
from seedtune.run import directory, recorded_config, replay
from seedtune.run.artifacts.hub_cache import licence_of, pinned
from seedtune.run.artifacts.model_card import Provenance, Repository, Rights, card


@dataclass(frozen=True, slots=True)
class Export:
    """The result of an export: number of generations in the model, and the duration of replay."""

    generation: int
    replayed: int
    """Generations that were replayed; the others came from a snapshot."""

    seconds: float


def export_run(
    run: str | Path,
    output: str | Path,
    *,
    generation: int | str | None = None,
    dtype: str | None = None,
    sets: Iterable[str] = (),
    progress: replay.Progress | None = None,
) -> Export:
    """Write a run's model after ``generation`` generations (all by default) as a Hugging Face folder.

    ``generation`` may also be ``best``, the one with the highest held-out reward, or ``best:METRIC`` or
    ``lowest:METRIC`` for another metric of the evaluations in ``metrics.jsonl``: it is rebuilt from the ledger.
    ``sets`` are ``key=value`` settings that results do not depend on, as in `seedtune.verify_run`.  Raises RunError if
    ``output`` is not empty or the run has fewer generations, LedgerError if the ledger is corrupted or the rebuilt
    weights are not those that it records, and StorageError if the folder cannot be written.
    """
    root, target = Path(run), Path(output)
    check_output(target)
    recorded, watch = replay.RecordedRun.read(root), replay.Stopwatch(progress)
    goal = replay.goal_of(root, recorded.contents.generations, generation, chosen=recorded.contents.chosen)
    with recorded.weights(recorded_config.for_weights(recorded.config, sets), goal, watch) as engine:
        write_export(engine, provenance(recorded.config, goal, root), target, dtype=dtype)
    return Export(goal, watch.updates, watch.seconds)


def export_gguf(run: str | Path, output: Path, like: str | None, export: Callable[[Path], Export]) -> Export:
    """Write a run's model as the GGUF file ``output``, made of the folder that ``export`` writes.

    ``like`` is a GGUF file of the base model, by default that of a built-in model.  Raises ConfigError if there is
    none and RunError if ``output`` exists, before anything is rebuilt, and the errors of `seedtune.to_gguf`.
    """
    from seedtune.engines.transformers.builtin_models import parsed_once
    from seedtune.engines.transformers.gguf_file import read_gguf, require_gguf, to_gguf

    base = replay.RecordedRun.read(Path(run)).config.model
    if like is None and base not in BUILTIN_MODELS:
        raise ConfigError(
            f"a GGUF file takes its tokenizer and settings from one of the base model, {public_name(base)!r}. Give it "
            "with --like, in any precision; or convert an exported folder with llama.cpp's convert_hf_to_gguf.py."
        )
    if output.exists():
        raise RunError(f"{str(output)!r} exists already. Choose another --output.")
    require_gguf()
    with parsed_once():
        read_gguf(like or base)
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent) as scratch:
            done = export(Path(scratch) / "model")
            with activities.doing("writing GGUF and reading it back"):
                to_gguf(Path(scratch) / "model", output, like or base)
    return done


def check_output(output: Path) -> None:
    """Raise RunError if the output folder is not empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"the output folder {str(output)!r} is not empty. Choose another --output.")


def provenance(config: Config, generation: int, root: Path, rights: Rights | None = None) -> Provenance:
    """Return what the card of a run's model says, with the held-out evaluations in its directory ``root``."""
    rights = rights or Rights()
    known = Rights(rights.base_licence or licence_of(config.model), rights.licence, rights.note)
    evaluations = directory.read_lines(directory.RunPaths(root).metrics)
    return Provenance(config, generation, known, evaluations, pinned(config.model))


def write_export(
    engine: Engine, made: Provenance, output: Path, *, dtype: str | None, to: Repository | None = None
) -> None:
    """Write model, tokenizer and card atomically; on StorageError nothing is left behind."""
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent) as scratch:
            part = Path(scratch) / "model"
            part.mkdir()
            engine.export(part, dtype)
            (part / "README.md").write_text(card(made, engine.fingerprint(), to=to), encoding="utf-8")
            if output.exists():
                output.rmdir()
            shutil.move(part, output)
    except (OSError, SafetensorError) as error:
        cause, fix = storage_cause(error)
        raise StorageError(
            f"cannot write the model to {str(output)!r}: {cause}. {fix}, or choose another folder."
        ) from error
