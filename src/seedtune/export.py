"""Exports: the centre as a Hugging Face folder with a model card that says how it was made."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from seedtune import ledger, replay
from seedtune.config import Config
from seedtune.engines.base import Engine
from seedtune.errors import RunError, StorageError, storage_cause

CARD = """---
library_name: transformers
base_model: {model}
tags: [seedtune, evolution-strategies]
---

# {model}, fine-tuned by evolution strategies

Made with [seedtune](https://pypi.org/project/seedtune/) {version} (arXiv 2509.24372): no gradients,
{generations} generations of {population} members, σ {sigma}, α {alpha}, {perturbation} perturbation of rank
{rank}, task `{task}`, seed {seed}.

Centre fingerprint `{fingerprint}`. The licence of the base model applies.
"""


def export_run(root: Path, output: Path, *, generation: int | None = None, dtype: str | None = None) -> int:
    """Write a run's model after ``generation`` generations (all by default); returns how many those were."""
    check_output(output)
    config, contents = replay.run_config(root), ledger.read(replay.RunPaths(root).ledger)
    replay.check_same_run(root, contents.header, config)
    goal = contents.generations if generation is None else generation
    engine, _ = replay.load(root, config, contents, generation=goal)
    write_export(engine, config, goal, output, dtype=dtype)
    return goal


def check_output(output: Path) -> None:
    """RunError if the output folder holds something already."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise RunError(f"the output folder {str(output)!r} is not empty. Choose another --output.")


def write_export(engine: Engine, config: Config, generation: int, output: Path, *, dtype: str | None) -> None:
    """Model, tokenizer and card, put in place at once; StorageError leaves nothing behind."""
    check_output(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent) as scratch:
            part = Path(scratch) / "model"
            part.mkdir()
            engine.export(part, dtype)
            (part / "README.md").write_text(_card(engine, config, generation), encoding="utf-8")
            if output.exists():
                output.rmdir()
            shutil.move(part, output)
    except (OSError, SafetensorError) as error:
        cause, fix = storage_cause(error)
        raise StorageError(
            f"cannot write the model to {str(output)!r}: {cause}. {fix}, or choose another folder."
        ) from error


def _card(engine: Engine, config: Config, generation: int) -> str:
    from seedtune import __version__

    return CARD.format(
        version=__version__,
        generations=generation,
        alpha=config.step,
        fingerprint=engine.fingerprint(),
        **{k: getattr(config, k) for k in ("model", "population", "sigma", "perturbation", "rank", "task", "seed")},
    )
