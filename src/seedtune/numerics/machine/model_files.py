"""Files of pretrained models, read through transformers, with errors of one line."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from seedtune.errors import MissingExtraError, ModelError, first_line

_POINTER = b"version https://git-lfs"
"""How a file begins that stands for one which git-lfs has not fetched."""

_UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError)
"""What transformers, tokenizers and safetensors raise for files that they cannot read, and for missing packages."""


def read(factory: Any, location: str, *, what: str, fix: str, **options: Any) -> Any:
    """Return ``factory.from_pretrained(location)``.

    Raises ModelError, which names ``what`` and ends with the ``fix``, if files are missing, damaged or pointers of
    git-lfs, and MissingExtraError if a tokenizer needs a package that is not installed.
    """
    try:
        return factory.from_pretrained(location, **options)
    except _UNREADABLE as error:
        pointer, told = next(filter(_is_pointer, sorted(Path(location).glob("*"))), None), str(error).lower()
        if pointer is not None:
            raise ModelError(
                f"cannot load {what}: {pointer} is a pointer of git-lfs, not the file itself. Fetch it with: "
                f"git -C {shlex.quote(location)} lfs pull"
            ) from error
        if find_spec("sentencepiece") is None and ("sentencepiece" in told or "tokenizer.model" in told):
            raise MissingExtraError(f"the tokenizer of {what}", "pip install sentencepiece protobuf") from error
        fix = "Install that package." if isinstance(error, ImportError) else fix
        raise ModelError(f"cannot load {what}: {first_line(error)} {fix}") from error


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
            told = stated if isinstance(stated, dict) else stated.to_dict()
            return str(getattr(told.get("quant_method"), "value", told.get("quant_method", "of an unknown kind")))
    return None
