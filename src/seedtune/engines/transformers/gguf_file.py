"""Write an exported model as a GGUF file, for llama.cpp and all that use it.

What a GGUF file says besides the weights (architecture, tokenizer with its splitting rule, chat template) is taken from
a GGUF file of the base model, which fine-tuning does not change: llama.cpp's converter knows these rules, the ``gguf``
package does not.  The result is read back by transformers and compared, tensor by tensor and setting by setting.
"""

from __future__ import annotations

import importlib
import math
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from seedtune.engines.transformers.builtin_models import BUILTIN, builtin_gguf, dense_options, parsed_once
from seedtune.errors import MissingExtraError, ModelError, StorageError, first_line, storage_cause
from seedtune.numerics import model_files

FAMILIES = ("llama", "qwen2", "qwen3")
"""Families in transformers, and architectures in GGUF, of models that are written."""

_OTHERWISE = "Convert the exported folder with llama.cpp's convert_hf_to_gguf.py."
_BASE = "Give a GGUF file of the base model."
_ROPE = "rope_freqs.weight"
"""A tensor of constants, which is copied."""

_DROPPED = ("GGUF.", "general.architecture", "general.name", "general.file_type", "general.quantization", "quantize.")
"""Beginnings of names of metadata that are of the other file, or that the writer writes."""

_SAME = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
_CLOSE = ("rms_norm_eps", "rope_theta")
"""Settings of a model that both files have to state alike, the latter rounded to float32."""


def to_gguf(folder: str | Path, output: str | Path, like: str | Path) -> None:
    """Write the model in a Hugging Face folder, such as an export, as the GGUF file ``output``.

    ``like`` is a GGUF file of the base model, in any precision, or a built-in name.  Matrices keep the precision of
    the folder, vectors are float32.  Raises ModelError if ``like`` is of another model, or of a family that is not
    written, and if the file does not read back as the folder; MissingExtraError without the ``gguf`` package, and
    StorageError if the file cannot be written.  On an error there is no file.
    """
    folder, output = Path(folder), Path(output)
    if output.exists():
        raise StorageError(f"{str(output)!r} exists already. Choose another name.")
    source = read_gguf(like)
    tensors = _tensors(folder)
    config = model_files.read(AutoConfig, str(folder), what=f"the model in {folder}", fix="Export it again.")
    _check_same_model(source, folder, config, str(like))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".exporting-", dir=output.parent) as scratch:
            part = Path(scratch) / "model.gguf"
            _write(part, source, _placed(source, tensors, config, str(like)), output.stem)
            _check_read_back(part, tensors, config, str(like))
            part.rename(output)
    except OSError as error:
        cause, fix = storage_cause(error)
        raise StorageError(f"cannot write {str(output)!r}: {cause}. {fix}, or choose another folder.") from error


def require_gguf() -> None:
    """Raise MissingExtraError without the packages that read and write GGUF files."""
    if any(find_spec(package) is None for package in ("gguf", "accelerate")):
        raise MissingExtraError("a GGUF file", "pip install gguf accelerate")


def read_gguf(like: str | Path) -> Any:
    """Open a GGUF file, or that of a built-in name.

    Raises ModelError if there is none, MissingExtraError without the package that reads it.
    """
    require_gguf()
    path = builtin_gguf(str(like)) if like in BUILTIN else Path(like)
    if not path.is_file():
        raise ModelError(f"there is no GGUF file {str(path)!r}. Give one of the base model, in any precision.")
    try:
        source = importlib.import_module("gguf").GGUFReader(path)
    except (ValueError, LookupError, OSError) as error:
        raise ModelError(f"{path} cannot be read as GGUF: {first_line(error)}. Give a GGUF file.") from error
    if "split.count" in source.fields and source.fields["split.count"].contents() > 1:
        raise ModelError(f"{path} is one of several parts. Merge them first with llama.cpp's llama-gguf-split --merge.")
    return source


def _tensors(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of a Hugging Face folder."""
    found = dict[str, Path]()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    if not found:
        raise ModelError(f"{folder} has no model*.safetensors. Give a folder that 'seedtune export' wrote.")
    return found


def _tensor(tensors: Mapping[str, Path], name: str) -> torch.Tensor:
    with safe_open(tensors[name], "pt") as file:
        found: torch.Tensor = file.get_tensor(name)
    return found


def _check_same_model(source: Any, folder: Path, config: Any, like: str) -> None:
    """Raise ModelError if the GGUF file is of a family that is not written, or has another vocabulary."""
    family, architecture = config.model_type, source.fields["general.architecture"].contents()
    if family not in FAMILIES or family != architecture:
        known = ", ".join(FAMILIES)
        raise ModelError(
            f"a model of the family {family!r} (GGUF: {architecture!r}) is not written as GGUF, only {known}. "
            f"{_OTHERWISE}"
        )
    if "tokenizer.ggml.tokens" not in source.fields:
        raise ModelError(f"{like} holds no tokenizer. {_BASE}")
    theirs = source.fields["tokenizer.ggml.tokens"].contents()
    for token, number in sorted(AutoTokenizer.from_pretrained(folder).get_vocab().items(), key=lambda item: item[1]):
        if number >= len(theirs) or theirs[number] != token:
            other = theirs[number] if number < len(theirs) else None
            raise ModelError(
                f"{like} is of another model: its token {number} is {other!r}, and the model's is {token!r}. {_BASE}"
            )


def _placed(source: Any, tensors: Mapping[str, Path], config: Any, like: str) -> dict[str, torch.Tensor]:
    """Return the tensors by their names in GGUF and in its layout, in the order of the GGUF file.

    Raises ModelError if one is missing in either, or has another shape.
    """
    gguf = importlib.import_module("gguf")
    architecture = source.fields["general.architecture"].contents()
    kinds = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config.num_hidden_layers)
    theirs = {names.get_name(name, try_suffixes=(".weight", ".bias")): name for name in tensors}
    if config.tie_word_embeddings:
        theirs.setdefault("output.weight", theirs.get("token_embd.weight", ""))
    wanted = {tensor.name for tensor in source.tensors} - {_ROPE}
    left = {name for name in theirs if name not in wanted} - (
        {"output.weight"} if config.tie_word_embeddings else set()
    )
    if left or wanted - theirs.keys():
        odd = sorted([*(str(theirs[name]) for name in left), *(wanted - theirs.keys())])
        raise ModelError(f"{like} and the model do not have the same tensors: {', '.join(odd[:3])}. {_OTHERWISE}")
    placed = dict[str, torch.Tensor]()
    for tensor in source.tensors:
        if tensor.name == _ROPE:
            placed[tensor.name] = torch.from_numpy(tensor.data.copy())
            continue
        found, shape = _tensor(tensors, theirs[tensor.name]), tuple(reversed(tensor.shape.tolist()))
        if tuple(found.shape) != shape:
            raise ModelError(
                f"{like} is of another model: {tensor.name} is {shape}, and the model's {tuple(found.shape)}. {_BASE}"
            )
        placed[tensor.name] = _interleaved(found, tensor.name, config) if architecture == "llama" else found
    return placed


def _interleaved(tensor: torch.Tensor, name: str, config: Any) -> torch.Tensor:
    """Return rows in the order in which llama.cpp rotates them: pairs side by side, not half a head apart."""
    kinds = {".attn_q.": config.num_attention_heads, ".attn_k.": config.num_key_value_heads}
    heads = next((heads for kind, heads in kinds.items() if kind in name), None)
    return tensor if heads is None else tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _write(path: Path, source: Any, tensors: Mapping[str, torch.Tensor], name: str) -> None:
    gguf = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, source.fields["general.architecture"].contents())
    writer.add_name(f"{name}, fine-tuned by seedtune")
    for field in source.fields.values():
        if not field.name.startswith(_DROPPED):
            sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    kinds = {
        torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
        torch.float16: (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
        torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    }
    for name_in_gguf, tensor in tensors.items():
        stored = tensor.contiguous() if tensor.dim() > 1 else tensor.float()
        kind, file_type = kinds[stored.dtype]
        if tensor.dim() > 1 and name_in_gguf == "token_embd.weight":
            writer.add_file_type(file_type)
        writer.add_tensor(name_in_gguf, stored.view(torch.uint8).numpy(), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _check_read_back(path: Path, tensors: Mapping[str, Path], config: Any, like: str) -> None:
    """Raise ModelError if transformers reads other settings or tensors from a GGUF file than from the folder."""
    place: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    dtype = _tensor(tensors, next(name for name in tensors if "embed_tokens" in name)).dtype
    with parsed_once():
        stated = AutoConfig.from_pretrained(**place)
        pairs = [(name, getattr(config, name), getattr(stated, name)) for name in _SAME]
        pairs += [(name, _setting(config, name), _setting(stated, name)) for name in _CLOSE]
        for name, ours, read in pairs:
            if not math.isclose(ours, read, rel_tol=1e-6):
                raise ModelError(f"{like} has {name}={read:g}, and the model has {ours:g}. {_BASE}")
        model = AutoModelForCausalLM.from_pretrained(**place, config=config, dtype=dtype, **dense_options())
    found = model.state_dict()
    for name in tensors:
        if not torch.equal(found[name], _tensor(tensors, name).to(found[name].dtype)):
            raise ModelError(f"{name} does not come back from GGUF as it was written. {_OTHERWISE}")


def _setting(config: Any, name: str) -> float:
    return float((config.rope_parameters or {})[name] if name == "rope_theta" else getattr(config, name))
