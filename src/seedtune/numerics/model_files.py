"""Files of pretrained models, read through transformers, with errors of one line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from seedtune.config.foreign_data import parse_json, shown
from seedtune.errors import MissingExtraError, ModelError, StorageError, first_line
from seedtune.numerics import tensor_file

_POINTER = b"version https://git-lfs"
"""How a file begins that stands for one which git-lfs has not fetched."""

_UNREADABLE = (
    *(OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError),
    *(ImportError, MemoryError, SafetensorError, StorageError, StrictDataclassError),
)
"""Errors of transformers, tokenizers and safetensors for unreadable files and for missing packages."""

_SIZES = re.compile(
    r"(hidden|vocab|intermediate|ffn|embed\w*)_\w+|num_\w*(layers|heads|experts|labels)|n_(embd|layer|head|inner)"
    r"|head_dim|d_(model|ff)"
)
"""Names in a model's config.json of numbers from which transformers makes tensors and layers."""


def read(factory: Any, location: str, *, what: str, fix: str, **options: Any) -> Any:
    """Return ``factory.from_pretrained(location)``.

    Raises ModelError, which names ``what`` and ends with the ``fix``, if files are missing, damaged or pointers of
    git-lfs, and MissingExtraError if a tokenizer needs a package that is not installed.
    """
    try:
        if Path(location).is_dir():
            _check_sizes(Path(location))
        return factory.from_pretrained(location, **options)
    except Exception as error:  # the named boundary: tokenizers raises plain ones
        if type(error) is not Exception and not isinstance(error, _UNREADABLE):
            raise
        pointer, message = next(filter(_is_pointer, sorted(Path(location).glob("*"))), None), str(error).lower()
        if pointer is not None:
            raise ModelError(
                f"cannot load {what}: {pointer} is a pointer of git-lfs, not the file itself. Fetch it with: "
                f"git -C {shlex.quote(location)} lfs pull"
            ) from error
        if find_spec("sentencepiece") is None and ("sentencepiece" in message or "tokenizer.model" in message):
            raise MissingExtraError(f"the tokenizer of {what}", "pip install sentencepiece protobuf") from error
        fix = "Install that package." if isinstance(error, ImportError) else fix
        line = first_line(error)
        line = " ".join(str(error).split())[:300] if line.endswith(":") else line
        raise ModelError(f"cannot load {what}: {line} {fix}") from error


def _check_sizes(folder: Path) -> None:
    """Raise ValueError if the configuration asks for more than the tensors on disk have, before it is allocated.

    Raises StorageError for a broken file of tensors.
    """
    files = sorted(folder.glob("model*.safetensors"))
    stored = [tensor for file in files for tensor in tensor_file.contents(file).values()]
    config = parse_json((folder / "config.json").read_bytes())
    if not isinstance(config, dict):
        raise ValueError(f"its config.json holds {shown(config)}, not settings.")
    most = max((*(size for tensor in stored for size in tensor.shape), len(stored), 0 if stored else 1 << 20))
    for name, value in _settings(config):
        if _SIZES.fullmatch(name) and isinstance(value, int | float) and value > most:
            raise ValueError(f"its config.json has {name}={shown(value)}, more than any of its tensors ({most}).")


def _settings(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a configuration and of those within it, as of a model's text part."""
    for name, value in config.items():
        yield name, value
        yield from _settings(value) if isinstance(value, dict) else ()


def _is_pointer(file: Path) -> bool:
    if not file.is_file() or file.stat().st_size > 1024:
        return False
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def quantisation(config: Any) -> str | None:
    """Return how a model's configuration says that its weights are quantised; None if they are not."""
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        stated = getattr(part, "quantization_config", None) or getattr(part, "compression_config", None)
        if stated is not None:
            method = stated if isinstance(stated, dict) else stated.to_dict()
            return str(getattr(method.get("quant_method"), "value", method.get("quant_method", "of an unknown kind")))
    return None
