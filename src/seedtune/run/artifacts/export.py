"""Export of the current model as a Hugging Face folder, with a model card that describes how it was made."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from seedtune.config.config import Config
from seedtune.config.foreign_data import dump_yaml
from seedtune.config.paths import id_and_revision, is_folder, public_name
from seedtune.engines.base import Engine
from seedtune.errors import RunError, StorageError, storage_cause
from seedtune.run import recorded_config, replay
from seedtune.types import __version__


@dataclass(frozen=True, slots=True)
class Rights:
    """Licences of the base model and of the fine-tune, and a note, as far as they are known."""

    base_licence: str | None = None
    licence: str | None = None
    note: str | None = None

    def text(self) -> str:
        """Return the text for the model card."""
        base = f" ({self.base_licence})" if self.base_licence else ""
        own = f" Licence of the fine-tune: {self.licence}." if self.licence else ""
        note = f"\n\n{self.note}" if self.note else ""
        return f"The licence of the base model{base} applies.{own}{note}"


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
    goal = replay.goal_of(root, recorded.contents.generations, generation)
    with recorded.weights(recorded_config.for_weights(recorded.config, sets), goal, watch) as engine:
        write_export(engine, recorded.config, goal, target, dtype=dtype)
    return Export(goal, watch.updates, watch.seconds)


def check_output(output: Path) -> None:
    """Raise RunError if the output folder is not empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"the output folder {str(output)!r} is not empty. Choose another --output.")


def write_export(
    engine: Engine, config: Config, generation: int, output: Path, *, dtype: str | None, rights: Rights | None = None
) -> None:
    """Write model, tokenizer and card atomically; on StorageError nothing is left behind."""
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent) as scratch:
            part = Path(scratch) / "model"
            part.mkdir()
            engine.export(part, dtype)
            (part / "README.md").write_text(_card(engine, config, generation, rights or Rights()), encoding="utf-8")
            if output.exists():
                output.rmdir()
            shutil.move(part, output)
    except (OSError, SafetensorError) as error:
        cause, fix = storage_cause(error)
        raise StorageError(
            f"cannot write the model to {str(output)!r}: {cause}. {fix}, or choose another folder."
        ) from error


def _card(engine: Engine, config: Config, generation: int, rights: Rights) -> str:
    """Return the model card: metadata of the Hub, how the model was made, and its licences."""
    licence = rights.licence or rights.base_licence
    front: dict[str, Any] = {"library_name": "transformers", "tags": ["seedtune", "evolution-strategies"]}
    front |= {} if is_folder(config.model) else {"base_model": id_and_revision(config.model)[0]}
    front |= {"license": licence} if licence else {}
    perturbation = f"{config.perturbation} perturbation"
    perturbation += f" of rank {config.rank}" if config.perturbation == "lowrank" else ""
    return f"""---
{dump_yaml(front)}---

# {public_name(config.model)}, fine-tuned by evolution strategies

Made with [seedtune](https://pypi.org/project/seedtune/) {__version__} (arXiv 2509.24372): no gradients,
{generation} generations of {config.population} members, σ {config.sigma}, α {config.step_words()}, {perturbation},
task `{config.identity()["task"]}`, seed {config.seed}.

Weights fingerprint `{engine.fingerprint()}`. {rights.text()}
"""
